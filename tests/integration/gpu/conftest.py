"""Brings the unit tests' cases for Triton within reach, and keeps the user's tuned blocks away."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ["LI_PLUGINS_TUNING"] = "0"  # what is tested is what is built in

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ops"))
pytest.register_assert_rewrite(
    *(f"{operation}_triton_cases" for operation in ("maxsim", "smooth_maxsim", "kmeans", "codec", "stored", "near"))
)
