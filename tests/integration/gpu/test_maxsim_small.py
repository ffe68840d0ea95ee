"""The interpreter's cases, compiled: layouts, rules, odd shapes, NaN, ties, strides, empties."""

from __future__ import annotations

import pytest
import torch
from maxsim_triton_cases import *  # noqa: F403

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
