"""A GPU that is the CPU: the branches that colbert-ai takes where it sees a GPU, on tensors that stay where they are.

What they compute is float16 as there; what only a GPU has (its kernels, its memory) needs ``test_colbert_cuda.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Pretended(TorchFunctionMode):
    """Takes what goes to ``"cuda"`` to the CPU, and lets the library's assertions see a GPU's tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cuda:
            return args[0]
        if func == Tensor.is_cuda.__get__:
            return sys._getframe(1).f_globals["__name__"] == "colbert.search.index_storage"
        args = tuple("cpu" if value == "cuda" and isinstance(value, str) else value for value in args)
        keywords = dict(kwargs or {})
        if str(keywords.get("device")) == "cuda":
            keywords["device"] = "cpu"
        return func(*args, **keywords)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let colbert-ai see one GPU."""
    from colbert.infra.config.settings import RunSettings
    from li_plugins_colbert import residency

    with (
        patch.object(RunSettings, "total_visible_gpus", 1),
        patch.object(torch.nn.Module, "cuda", lambda module, *arguments: module),
        patch.object(residency, "free_bytes", lambda device: 1 << 30),
        _Pretended(),
    ):
        yield
