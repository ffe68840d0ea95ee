"""What every adapter promises, for transformers'."""

from __future__ import annotations

import pytest

from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestTransformers(Conformance):
    adapter = "transformers"
    preload = ("torch", "transformers.generation.utils", "transformers.models.auto.tokenization_auto")
