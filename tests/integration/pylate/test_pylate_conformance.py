"""What every adapter promises, for PyLate's."""

from __future__ import annotations

import pytest

from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestPyLate(Conformance):
    adapter = "pylate"
    preload = ("torch", "datasets", "sentence_transformers", "pandas")
