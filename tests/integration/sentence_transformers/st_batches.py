"""What the suites of sentence-transformers score: functions, batches and masks for them, and what a call comes to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from sentence_transformers.multi_vector_encoder import scoring
from sentence_transformers.util import similarity
from torch import Tensor

BOTH_GRADS = (True, True)
HALVES = [torch.float32, torch.bfloat16, torch.float16]
"""float64 has an oracle of its own: the library rounds its maxima to float32."""

Masks = tuple[Tensor | None, Tensor | None]


class Kind(NamedTuple):
    """One of the functions, and the shape of its documents before their tokens, for so many queries and documents."""

    name: str
    leading: Callable[[int, int], tuple[int, ...]]

    @property
    def function(self) -> Callable[..., Tensor]:
        # looked up in each test: nothing is patched when this module is collected
        return getattr(similarity if "maxsim" in self.name else scoring, self.name)

    def __repr__(self) -> str:
        return self.name


CHUNKS = [
    Kind("_maxsim_score_documents", lambda queries, documents: (documents,)),
    Kind("_maxsim_score_pairs", lambda queries, documents: (queries,)),
]
PUBLIC = [
    Kind("maxsim", lambda queries, documents: (documents,)),
    Kind("maxsim_pairwise", lambda queries, documents: (queries,)),
    Kind("colbert_scores", lambda queries, documents: (queries + 1, documents)),
    Kind("colbert_scores_pairwise", lambda queries, documents: (queries,)),
    Kind("colbert_kd_scores", lambda queries, documents: (queries, documents)),
]
KINDS = CHUNKS + PUBLIC

MASKS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], Masks]] = {
    "none": lambda q, d: (None, None),
    "prefix": lambda q, d: (None, prefix(d)),
    "holes": lambda q, d: (None, torch.rand(d) < 0.6),
    "all masked": lambda q, d: (None, torch.zeros(d, dtype=torch.bool)),
    "one masked": lambda q, d: (prefix(q), first_masked(d)),
    "queries": lambda q, d: (prefix(q), None),
    "both": lambda q, d: (prefix(q), torch.rand(d) < 0.6),
    "weights": lambda q, d: (torch.rand(q), torch.rand(d).round()),
    "negative weights": lambda q, d: (-torch.rand(q), -torch.rand(d)),
    "int64": lambda q, d: (prefix(q).long(), (torch.rand(d) < 0.6).long()),
    "uint8": lambda q, d: (None, (torch.rand(d) < 0.6).to(torch.uint8)),
    "half weights": lambda q, d: (torch.rand(q).half(), torch.rand(d).half()),
}


def prefix(shape: tuple[int, ...]) -> Tensor:
    """A mask of random lengths, one token at least."""
    return torch.arange(shape[-1]) < torch.randint(1, shape[-1] + 1, shape[:-1])[..., None]


def first_masked(shape: tuple[int, ...]) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0] = False
    return mask


def embeddings(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1).to(dtype)


def pair(kind: Kind, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [embeddings(3, 5, 16, dtype=dtype), embeddings(*kind.leading(3, 4), 7, 16, dtype=dtype)]


def forget_warnings() -> None:
    """Clear the cache behind ``warning_once``."""
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
