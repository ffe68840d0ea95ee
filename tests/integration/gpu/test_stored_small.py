"""The interpreter's cases of stored documents, compiled: bits, dtypes, odd shapes, pairs, NaN, strides, empties."""

from __future__ import annotations

import pytest
import torch
from stored_triton_cases import *  # noqa: F403

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
