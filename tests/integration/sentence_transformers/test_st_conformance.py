"""What every adapter promises, for sentence-transformers'."""

from __future__ import annotations

import pytest

from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestSentenceTransformers(Conformance):
    adapter = "sentence-transformers"
    preload = ("torch", "datasets", "sklearn.metrics", "transformers.trainer")
