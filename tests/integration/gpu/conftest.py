"""Brings the unit tests' cases for Triton within reach."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ops"))
pytest.register_assert_rewrite("maxsim_triton_cases", "smooth_maxsim_triton_cases")
