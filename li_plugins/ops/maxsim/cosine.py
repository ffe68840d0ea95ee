"""MaxSim of cosines: norms are divided out after the products, so that no normalised copy of the embeddings exists."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import autograd, contract

LEAST_NORM = 1e-12
"""Shorter embeddings are divided by this instead, as ``torch.nn.functional.normalize`` does."""


def cosine_maxsim(
    queries: Tensor,
    documents: Tensor,
    *,
    query_weights: Tensor | None = None,
    document_mask: Tensor | None = None,
    document_lengths: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Score embeddings of any norm by their directions, as ``maxsim`` scores what ``normalize`` returns of them.

    Norms and their inverses are float32 (float64 for float64) and are factors of the similarities, one for each token:
    16-bit embeddings are not rounded once more, as a normalised copy would be.

    Parameters
    ----------
    queries, documents, query_weights, document_lengths, out_dtype
        As in ``maxsim``.
    document_mask
        ``[B, Ld]`` or ``[A, K, Ld]``, bool or real: a factor of each document token, as under ``MaskRule.ZERO``.

    Returns
    -------
    Tensor
        ``[A, B]`` or ``[A, K]``. Gradients flow to ``queries`` and ``documents``, through their norms too.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    NoKernel
        When no kernel serves the device.
    """
    rule = MaskRule.ZERO
    contract.dense(queries, documents, query_weights, document_mask, document_lengths, rule, out_dtype)
    of_queries, of_documents = _inverse_norms(queries), _inverse_norms(documents)
    weights = of_queries if query_weights is None else of_queries * query_weights.to(of_queries)
    mask = of_documents if document_mask is None else of_documents * document_mask.to(of_documents)
    queries = cast(Tensor, _Direction.apply(queries, of_queries))
    documents = cast(Tensor, _Direction.apply(documents, of_documents))
    return autograd.scores(contract.dense(queries, documents, weights, mask, document_lengths, rule, out_dtype))


def _inverse_norms(embeddings: Tensor) -> Tensor:
    dtype = torch.float64 if embeddings.dtype is torch.float64 else torch.float32
    norms = torch.linalg.vector_norm(embeddings.detach(), dim=-1, dtype=dtype)
    return norms.clamp_min_(LEAST_NORM).reciprocal_()


class _Direction(torch.autograd.Function):
    """The embeddings themselves, whose gradient loses what would only change their norms.

    With ``u = x / |x|`` the derivative of a function of ``u`` is ``(g - u (u . g)) / |x|``; the division is in ``g``
    already, since the similarities are multiplied with ``1 / |x|``.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, inverse_norms: Tensor) -> Tensor:
        ctx.save_for_backward(embeddings, inverse_norms)
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        embeddings, inverse_norms = ctx.saved_tensors
        with torch.no_grad():
            found = _across(embeddings, inverse_norms, grad)
        # the norms are constants to what gave this gradient: it would be differentiated into a wrong number
        return (_Once.apply(found, embeddings) if torch.is_grad_enabled() else found), None


def _across(embeddings: Tensor, inverse_norms: Tensor, grad: Tensor) -> Tensor:
    """Return the part of a gradient that does not change norms."""
    # what is shorter than the least norm was divided by a constant
    inverse = torch.where(inverse_norms < 1 / LEAST_NORM, inverse_norms, 0)[..., None]
    directions = embeddings * inverse
    along = (directions * grad).sum(-1, keepdim=True)
    return (grad - directions * along).to(grad.dtype)


class _Once(torch.autograd.Function):
    """A gradient that has none of its own."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, embeddings: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        raise NotImplementedError(
            "cosine_maxsim has no second derivative: its gradient was differentiated (create_graph=True)"
        )
