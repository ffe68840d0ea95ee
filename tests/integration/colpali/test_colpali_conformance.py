"""What every adapter promises, for colpali-engine's."""

from __future__ import annotations

import pytest

from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestColpali(Conformance):
    adapter = "colpali"
    preload = ("torch", "transformers", "scipy")
