"""What every adapter promises, for transformers'."""

from __future__ import annotations

import pytest

from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestTransformers(Conformance):
    adapter = "transformers"
    preload = ("torch", "transformers.processing_utils", "transformers.image_utils")
