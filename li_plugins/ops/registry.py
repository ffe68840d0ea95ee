"""Which kernels there are for each operation: the built-in rows and those of plugins."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from li_plugins import api
from li_plugins.api import Kernel, Support

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("li_plugins.ops")


def _triton(op: str, load: str, *, grad: bool = False) -> Kernel:
    """Return the row of an operation's Triton kernels, which go before plain torch."""
    floats = ("float16", "bfloat16", "float32")
    return Kernel(op, "triton", load, ("cuda",), floats, arch=(80, 129), grad=grad, priority=100)


def _plain(op: str, load: str, *, blocked: str = "blocked", grad: bool = False) -> tuple[Kernel, Kernel]:
    """Return the rows of an operation in plain torch: in blocks, by the module ``blocked``, and as one reads it."""
    floats = ("float16", "bfloat16", "float32", "float64")
    return (
        Kernel(op, "blocked", load.format(blocked), ("cpu", "cuda"), floats, grad=grad, priority=0),
        Kernel(op, "reference", load.format("reference"), ("cpu", "cuda"), floats, grad=grad, priority=-100),
    )


BUILTIN = (
    _triton("maxsim", "li_plugins.ops.maxsim.triton_kernel:KERNEL", grad=True),
    *_plain("maxsim", "li_plugins.ops.maxsim.{}:KERNEL", blocked="cpu", grad=True),
    _triton("smooth_maxsim", "li_plugins.ops.smooth_maxsim.triton_kernel:KERNEL", grad=True),
    *_plain("smooth_maxsim", "li_plugins.ops.smooth_maxsim.{}:KERNEL", grad=True),
    *_plain("xtr_maxsim", "li_plugins.ops.xtr_maxsim.{}:KERNEL", grad=True),
    _triton("assign", "li_plugins.ops.kmeans.triton_kernel:ASSIGN"),
    *_plain("assign", "li_plugins.ops.kmeans.{}:ASSIGN"),
    _triton("cluster_sums", "li_plugins.ops.kmeans.triton_kernel:SUMS"),
    *_plain("cluster_sums", "li_plugins.ops.kmeans.{}:SUMS"),
    _triton("compress", "li_plugins.ops.codec.triton_kernel:COMPRESS"),
    *_plain("compress", "li_plugins.ops.codec.{}:COMPRESS"),
    _triton("binarize", "li_plugins.ops.codec.triton_kernel:BINARIZE"),
    *_plain("binarize", "li_plugins.ops.codec.{}:BINARIZE"),
    _triton("decompress", "li_plugins.ops.codec.triton_kernel:DECOMPRESS"),
    *_plain("decompress", "li_plugins.ops.codec.{}:DECOMPRESS"),
    _triton("residual_maxsim", "li_plugins.ops.residual.triton_kernel:RESIDUAL"),
    *_plain("residual_maxsim", "li_plugins.ops.residual.{}:RESIDUAL"),
    _triton("code_maxsim", "li_plugins.ops.residual.triton_kernel:CODE"),
    *_plain("code_maxsim", "li_plugins.ops.residual.{}:CODE"),
    _triton("near_documents", "li_plugins.ops.near.triton_kernel:NEAR"),
    *_plain("near_documents", "li_plugins.ops.near.{}:NEAR"),
)


class Implementation(Protocol):
    """What ``Kernel.load`` names; ``problem`` is the operation's own (``li_plugins.ops.maxsim.problem.Problem``)."""

    def supports(self, problem: Any) -> Support:
        """Say whether this kernel serves the problem, from metadata alone."""

    def forward(self, problem: Any, want_winners: bool) -> tuple[Tensor, Tensor | None]:
        """Return the scores, and what the backward needs if it is wanted."""

    def backward(
        self, problem: Any, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients that are needed, in the dtype and shape of the inputs.

        Of a side whose gradient alone is needed, the embeddings' own values may be gone; see ``Operation.gathers``.
        """


def kernels(op: str) -> list[Kernel]:
    """Return the kernels of ``op``, best first; a plugin that fails to list its own is left out and logged."""
    rows = [kernel for kernel in BUILTIN if kernel.op == op]
    for provider in api.kernel_providers:
        try:
            rows += [kernel for kernel in provider() if kernel.op == op]
        except Exception:  # a stranger's code: whatever it raises must not take the built-in kernels away
            logger.exception("li_plugins: %r failed to list its kernels; they are left out", provider)
    return sorted(rows, key=lambda kernel: -kernel.priority)


def load(kernel: Kernel) -> Implementation:
    """Import what ``kernel.load`` names.

    Raises
    ------
    Exception
        Whatever the import raises; the dispatcher turns it into the reason why the kernel was rejected.
    """
    module, _, attribute = kernel.load.partition(":")
    return getattr(import_module(module), attribute)
