"""Train and retrieve, once as colpali-engine does it and once patched."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from colpali_engine.loss import ColbertLoss
from colpali_engine.models import ColModernVBert
from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor
from rich.progress import Progress
from torch import Tensor

from visual_retrieval.model import build, encode_pages, encode_queries
from visual_retrieval.pages import PADDING, Page, Vocabulary, ask, pixels

BATCH = 16
LEARNING_RATE = 1e-3
SEED = 0
UNSEEN = -1
"""Seed of the queries that are asked at the end; those of the steps are not negative."""


@dataclass
class Training:
    """What one side trained."""

    model: ColModernVBert
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def questions(pages: list[Page], seed: int) -> list[list[str]]:
    """Return a query for each page."""
    return [ask(page, seed * len(pages) + number) for number, page in enumerate(pages)]


def train(pages: list[Page], vocabulary: Vocabulary, steps: int, progress: Progress, title: str) -> Training:
    """Train an untrained model; the same weights, pages and queries every time."""
    start = time.perf_counter()
    found = Training(build(len(vocabulary), SEED))
    pictures = pixels(pages)
    loss = ColbertLoss(temperature=0.05, norm_tol=1.0)
    optimizer = torch.optim.AdamW(found.model.parameters(), lr=LEARNING_RATE)
    for step in progress.track(range(steps), description=title):
        rows = torch.randperm(len(pages), generator=torch.Generator().manual_seed(step))[:BATCH]
        asked = questions(pages, step)
        queries = torch.stack([vocabulary.query(asked[row]) for row in rows.tolist()])
        value = loss(encode_queries(found.model, queries), encode_pages(found.model, pictures[rows]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.losses.append(value.item())
    found.seconds = time.perf_counter() - start
    return found


def vectors(model: ColModernVBert, pages: list[Page], vocabulary: Vocabulary) -> tuple[list[Tensor], list[Tensor]]:
    """Return a query for each page, its words in a combination that no step saw, and the pages; ``[length, 128]``."""
    numbers = torch.stack([vocabulary.query(words) for words in questions(pages, UNSEEN)])
    with torch.no_grad():
        queries = [rows[kept] for rows, kept in zip(encode_queries(model, numbers), numbers != PADDING, strict=True)]
        return queries, list(encode_pages(model, pixels(pages)))


def score(queries: list[Tensor], pages: list[Tensor]) -> Tensor:
    """Return ``[queries, pages]``."""
    return BaseVisualRetrieverProcessor.score_multi_vector(queries, pages, device="cpu")


def found_first(scores: Tensor) -> float:
    """Return the share of the queries whose page comes first."""
    return (scores.argmax(1) == torch.arange(len(scores))).float().mean().item()
