"""What norms are at least, so that rows without a direction stay zero."""

from __future__ import annotations

import torch

LEAST_NORMS = {
    dtype: torch.tensor(1e-12, dtype=dtype, device="cpu").item()
    for dtype in (torch.float16, torch.bfloat16, torch.float32)
}
"""By which ``torch.nn.functional.normalize`` divides at least, by the dtype that it rounds this to."""
