"""The interpreter's cases of the residual codec, compiled: dtypes, bits, odd shapes, rounding, strides, empties."""

from __future__ import annotations

import pytest
import torch
from codec_triton_cases import *  # noqa: F403

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
