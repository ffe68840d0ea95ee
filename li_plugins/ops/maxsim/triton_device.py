"""The devices on which Triton kernels run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from li_plugins.api import Support
from li_plugins.ops import _compat
from li_plugins.ops.described import Described
from li_plugins.ops.maxsim.problem import Problem
from li_plugins.ops.maxsim.triton_arguments import INTERPRETED

_HERE: AbstractContextManager[Any] = nullcontext()
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def support(problem: Problem | Described) -> Support:
    """Serve fp16, bf16 and fp32 on CUDA devices of compute capability 8.0 and later, NVIDIA's only."""
    dtype, device = problem.queries.dtype, problem.queries.device
    if dtype not in _DTYPES:
        return Support(False, f"dtype {dtype}: it computes in fp32, which serves float16, bfloat16 and float32")
    if INTERPRETED:
        return Support(True)
    if device.type != "cuda":
        return Support(False, f"device {device}: it needs CUDA")
    if torch.version.hip is not None:
        return Support(False, "ROCm: it was never tried there")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return Support(False, f"compute capability {major}.{minor}: it needs 8.0")
    return Support(True)


def decoder_support(problem: Described) -> Support:
    """Serve what ``support`` does where Triton passes the decoder its tables of weights, as tuples."""
    if not INTERPRETED and not _compat.passes_tuples():
        return Support(False, "triton before 3.3: its decoder passes tuples")
    return support(problem)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Return the guard that makes ``device`` current: Triton launches on the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)
