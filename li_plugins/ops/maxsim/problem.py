"""One MaxSim problem after validation: what every kernel receives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from li_plugins.ops.masks import MaskRule


class Layout(IntEnum):
    """Which query meets which document."""

    CROSS = 0
    """``queries [A, Lq, d]``, ``documents [B, Ld, d]``, scores ``[A, B]``."""
    CANDIDATES = 1
    """``queries [A, Lq, d]``, ``documents [A, K, Ld, d]``, scores ``[A, K]``."""
    PACKED_CROSS = 2
    """``queries [Tq, d]``, ``documents [Td, d]`` with offsets, scores ``[A, B]``."""
    PACKED_PAIRS = 3
    """``queries [Tq, d]``, ``documents [Td, d]`` with offsets and a list of pairs, scores ``[P]``."""


@dataclass(frozen=True, eq=False)  # no slots: Dynamo of torch 2.5 makes weak references to it where a graph breaks
class Problem:
    """Inputs and meaning of one MaxSim call; tensors share one device.

    ``queries`` and ``documents`` have the shapes of ``layout`` and one floating dtype; neither need be contiguous.
    ``query_weights`` has the shape of ``queries`` without its last dimension and any real or bool dtype.
    ``document_mask`` likewise for ``documents``; under EXCLUDE and FILL nonzero means keep, under ZERO it multiplies.
    ``document_lengths`` (dense layouts, int64, ``[B]`` or ``[A, K]``): tokens from there on do not exist.
    ``query_offsets [A + 1]``, ``document_offsets [B + 1]``, ``pair_queries [P]``, ``pair_documents [P]``: int64.
    ``max_query_length`` and ``max_document_length`` bound every query and document, in tokens.
    ``floor`` (packed layouts, bool, ``[B]`` for PACKED_CROSS and ``[P]`` for PACKED_PAIRS): where true, each query
    token's maximum is at least 0 (before ``query_weights``), as if the document were followed by a zero row.
    ``out_dtype`` is the dtype of the scores; accumulation is float32 for 16-bit and float32 inputs, else float64.

    Winners, the indices that the backward needs, are token indices counted from the start of their document, -1 where
    no token gets a gradient (nothing to choose from, the floor or a fill won). They are int16 where every index fits,
    else int32. Shape: ``[B, A, L]`` where every query meets every document, because both gradients read a document's
    winners together; else scores' shape plus ``[L]``. ``L`` is ``Lq``, or ``max_query_length`` with -1 past the length
    of a query.
    """

    layout: Layout
    queries: Tensor
    documents: Tensor
    rule: MaskRule
    out_dtype: torch.dtype
    max_query_length: int
    max_document_length: int
    query_weights: Tensor | None = None
    document_mask: Tensor | None = None
    document_lengths: Tensor | None = None
    floor: Tensor | None = None
    query_offsets: Tensor | None = None
    document_offsets: Tensor | None = None
    pair_queries: Tensor | None = None
    pair_documents: Tensor | None = None

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the scores."""
        if self.layout is Layout.CROSS:
            return self.queries.shape[0], self.documents.shape[0]
        if self.layout is Layout.CANDIDATES:
            return self.documents.shape[0], self.documents.shape[1]
        if self.layout is Layout.PACKED_PAIRS:
            assert self.pair_queries is not None
            return (self.pair_queries.shape[0],)
        assert self.query_offsets is not None and self.document_offsets is not None
        return self.query_offsets.shape[0] - 1, self.document_offsets.shape[0] - 1

    @property
    def winners_shape(self) -> tuple[int, ...]:
        """Shape of the winners."""
        shape = self.scores_shape
        return *(reversed(shape) if self.is_cross else shape), self.max_query_length

    @property
    def winners_dtype(self) -> torch.dtype:
        """Dtype of the winners."""
        return torch.int16 if self.max_document_length <= torch.iinfo(torch.int16).max else torch.int32

    def as_winners(self, winners: Tensor) -> Tensor:
        """Return winners by score, in any shape of as many elements, in the shape and dtype of winners."""
        winners = winners.reshape(*self.scores_shape, self.max_query_length)
        if self.is_cross:
            winners = winners.transpose(0, 1)
        return winners.to(self.winners_dtype).contiguous()

    def by_score(self, winners: Tensor) -> Tensor:
        """Return winners as ``[*scores_shape, L]``."""
        return winners.transpose(0, 1) if self.is_cross else winners

    @property
    def is_cross(self) -> bool:
        """Whether every query meets every document."""
        return self.layout is Layout.CROSS or self.layout is Layout.PACKED_CROSS
