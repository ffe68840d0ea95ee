"""Functions, shapes, masks and embeddings that the tests of PyLate's scores call."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

Masks = tuple[Tensor | None, Tensor | None]


class Kind:
    """One of the functions that take masks, and the shapes of its documents."""

    def __init__(self, name: str, leading: Callable[[int, int], tuple[int, ...]]) -> None:
        self.name, self.leading = name, leading

    def __repr__(self) -> str:
        return self.name

    def function(self, scores: ModuleType) -> Callable[..., Tensor]:
        if not hasattr(scores, self.name):
            pytest.skip(f"PyLate has {self.name} since 1.5")
        found = getattr(scores, self.name)
        return found() if isinstance(found, type) else found


KINDS = [
    Kind("colbert_scores", lambda queries, documents: (documents,)),
    Kind("colbert_kd_scores", lambda queries, documents: (queries, documents)),
    Kind("ColBERTScores", lambda queries, documents: (queries + 1, documents)),
]

MASKS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], Masks]] = {
    "none": lambda q, d: (None, None),
    "prefix": lambda q, d: (None, lengths(d)),
    "holes": lambda q, d: (None, torch.rand(d) < 0.6),
    "all masked": lambda q, d: (None, torch.zeros(d, dtype=torch.bool)),
    "queries": lambda q, d: (lengths(q), None),
    "both": lambda q, d: (lengths(q), torch.rand(d) < 0.6),
    "weights": lambda q, d: (torch.rand(q), torch.rand(d)),
    "negative weights": lambda q, d: (-torch.rand(q), None),
    "int64": lambda q, d: (lengths(q).long(), (torch.rand(d) < 0.6).long()),
    "uint8": lambda q, d: (None, (torch.rand(d) < 0.6).to(torch.uint8)),
    "half weights": lambda q, d: (torch.rand(q).half(), torch.rand(d).half()),
}


SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 2, 4, 3, 1),
    (2, 5, 32, 180, 128),
    (5, 7, 17, 63, 48),
    (7, 3, 63, 129, 96),
    (2, 2, 257, 33, 320),
    (1, 9, 33, 512, 8),
    (2, 1, 2, 8192, 16),
    (1, 127, 64, 1, 24),
    (4, 2, 1, 1271, 72),
]
"""Queries, documents, tokens of a query, tokens of a document, width."""

EMPTY = [(0, 3), (3, 0), (0, 0)]


def lengths(shape: tuple[int, ...]) -> Tensor:
    """A prefix mask of random lengths, one token at least."""
    return torch.arange(shape[-1]) < torch.randint(1, shape[-1] + 1, shape[:-1])[..., None]


def embeddings(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1).to(dtype)


def odd(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Return queries and documents of one of ``SHAPES``, and a mask of the documents."""
    queries, documents, query_tokens, document_tokens, width = shape
    mask = lengths((documents, document_tokens))
    pair = [(queries, query_tokens), (documents, document_tokens)]
    return [embeddings(*size, width, dtype=dtype) for size in pair], mask


def ragged(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [embeddings(size, 16, dtype=dtype) for size in sizes]


def strided(leading: tuple[int, ...]) -> list[list[Tensor]]:
    """Three queries and some documents: sliced, transposed, expanded."""
    documents = embeddings(*leading, 10, 8)
    return [
        [embeddings(3, 10, 8)[:, ::2], documents[..., ::2, :]],
        [embeddings(8, 5, 3).permute(2, 1, 0), embeddings(*leading, 8, 10).transpose(-1, -2)],
        [embeddings(1, 5, 8).expand(3, -1, -1), documents[..., :1, :].expand(*leading, 6, 8)],
    ]
