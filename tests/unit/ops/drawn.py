"""Random arguments for the public functions, drawn by ``random.Random``: every layout, factor and size that has one."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import MaskRule

LAYOUTS = ["cross", "candidates", "packed_cross", "packed_pairs"]


def arguments(
    layout: str, rule: MaskRule, seed: int, sizes: list[int], width: int = 5, coarse: bool = False
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return float64 arguments and keywords; embeddings come first.

    ``sizes`` are what counts and lengths are chosen from. ``coarse`` embeddings are -1, 0 or 1, so that many
    similarities tie.
    """
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def embeddings(*shape: int) -> Tensor:
        if coarse:
            return torch.randint(-1, 2, shape, generator=generator).double()
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def factor(shape: Any) -> Tensor | None:
        kept = torch.rand(shape, generator=generator) < 0.6
        values = torch.randn(shape, generator=generator)
        return choose.choice([None, kept, kept.long(), kept * values])

    queries, documents, query_length, document_length = (choose.choice(sizes) for _ in range(4))
    keywords: dict[str, Any] = {"mask_rule": rule}
    if layout in ("cross", "candidates"):
        leading = (documents,) if layout == "cross" else (queries, documents)
        tensors = [embeddings(queries, query_length, width), embeddings(*leading, document_length, width)]
        if choose.random() < 0.5:
            keywords["document_lengths"] = torch.randint(0, document_length + 1, leading, generator=generator)
    else:
        query_lengths = torch.tensor([choose.choice(sizes) for _ in range(queries)], dtype=torch.int64)
        document_lengths = torch.tensor([choose.choice(sizes) for _ in range(documents)], dtype=torch.int64)
        query_offsets, document_offsets = (
            torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            for lengths in (query_lengths, document_lengths)
        )
        tensors = [embeddings(int(query_offsets[-1]), width), embeddings(int(document_offsets[-1]), width)]
        tensors += [query_offsets, document_offsets]
        floors = documents
        if layout == "packed_pairs":
            floors = choose.choice(sizes) if queries and documents else 0
            keywords["pairs"] = tuple(
                torch.randint(0, max(count, 1), (floors,), generator=generator) for count in (queries, documents)
            )
        if choose.random() < 0.5:
            keywords["floor"] = torch.rand(floors, generator=generator) < 0.5
        if choose.random() < 0.5:
            keywords["max_query_length"] = keywords["max_document_length"] = max(sizes) + 1
    keywords["query_weights"] = factor(tensors[0].shape[:-1])
    keywords["document_mask"] = None if rule is MaskRule.NONE else factor(tensors[1].shape[:-1])
    return tensors, keywords
