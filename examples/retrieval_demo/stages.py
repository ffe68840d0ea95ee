"""The three pieces of work that the demo measures, written as a user of PyLate writes them.

None of them knows of li-plugins. ``run`` does the work once; ``side`` names who is being measured, which matters only
to a stage with a state of its own (two models in training must not mix).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pylate import losses, rank, utils
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retrieval_demo.embeddings import Embeddings
from retrieval_demo.model import SEED, load_model

WARM_UP_QUERIES = 8
TRAINING_STEPS = 20
TRAINING_BATCHES = 5
"""The steps go through these again and again, so that the loss falls."""
TRAINING_BATCH = 8
LEARNING_RATE = 3e-5
GRID_SHARE = 0.75
"""Part of the available memory that one call of the unpatched library may fill."""


class Stage(Protocol):
    """One measured piece of work."""

    title: str
    repetitions: int

    def warm_up(self, side: str) -> None:
        """Do a small part of the work, so that nothing is built or loaded in the first measured run."""

    def run(self, side: str, repetition: int) -> object:
        """Do the work and return its result."""


@dataclass(frozen=True)
class Inputs:
    """What the stages work on, as files and plain values, so that another process can be given it."""

    model: Path
    embeddings: Path
    device: str
    document_ids: tuple[str, ...]
    candidates: tuple[tuple[int, ...], ...]
    """Positions of each query's candidate documents."""
    pairs: tuple[tuple[str, str], ...]
    """Texts of queries and of a relevant document each."""
    queries_per_call: int
    source: str
    """What the model was made from."""


class Retrieval:
    """Every query against every document in one call (or few, where the library's grid would not fit)."""

    title = "exact retrieval"
    repetitions = 3

    def __init__(self, inputs: Inputs) -> None:
        embeddings = Embeddings.load(inputs.embeddings).to(inputs.device)
        self.model = load_model(inputs.model, inputs.device)
        self.queries = pad_sequence(embeddings.queries, batch_first=True)
        self.documents = pad_sequence(embeddings.documents, batch_first=True)
        self.queries_per_call = inputs.queries_per_call

    def warm_up(self, side: str) -> None:
        """Score a few queries; on a GPU, where the kernels are built for a shape, all of them."""
        if self.queries.is_cuda:
            self.run(side, 0)
        else:
            self.model.similarity(self.queries[:WARM_UP_QUERIES], self.documents)

    def run(self, side: str, repetition: int) -> Tensor:
        """Return the scores ``[queries, documents]``."""
        scores = [
            self.model.similarity(queries, self.documents) for queries in self.queries.split(self.queries_per_call)
        ]
        return torch.cat(scores)


class Reranking:
    """The candidates of a first stage, ordered by ``rank.rerank``."""

    title = "rank.rerank"
    repetitions = 3

    def __init__(self, inputs: Inputs) -> None:
        embeddings = Embeddings.load(inputs.embeddings).to(inputs.device)
        self.queries = embeddings.queries
        self.ids = [[inputs.document_ids[index] for index in chosen] for chosen in inputs.candidates]
        self.documents = [[embeddings.documents[index] for index in chosen] for chosen in inputs.candidates]

    def warm_up(self, side: str) -> None:
        """Rerank for a few queries; on a GPU for all of them."""
        count = None if self.queries[0].is_cuda else WARM_UP_QUERIES
        rank.rerank(self.ids[:count], self.queries[:count], self.documents[:count])

    def run(self, side: str, repetition: int) -> list[list[rank.RerankResult]]:
        """Return, for each query, the candidates with their scores, best first."""
        return rank.rerank(documents_ids=self.ids, queries_embeddings=self.queries, documents_embeddings=self.documents)


class Training:
    """Steps of ``losses.Contrastive`` on judged pairs; each side trains its own copy of one model on equal batches."""

    title = "training step"
    repetitions = TRAINING_STEPS

    def __init__(self, inputs: Inputs) -> None:
        self.folder, self.device = inputs.model, inputs.device
        self.pairs = inputs.pairs
        self.losses: dict[str, losses.Contrastive] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.batches: list[list[dict[str, Tensor]]] = []

    def warm_up(self, side: str) -> None:
        """Load this side's model and take one gradient, without a step."""
        model = load_model(self.folder, self.device).train()
        self.losses[side] = losses.Contrastive(model)
        self.optimizers[side] = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        self.batches = self.batches or self._tokenized(model)
        self._gradient(side, 0)
        self.optimizers[side].zero_grad()

    def run(self, side: str, repetition: int) -> float:
        """Take one step; return the loss before it."""
        loss = self._gradient(side, repetition)
        self.optimizers[side].step()
        self.optimizers[side].zero_grad()
        return loss.item()

    def _gradient(self, side: str, step: int) -> Tensor:
        """Forward and backward of one batch, with the same dropout for both sides."""
        torch.manual_seed(SEED + step)
        loss = self.losses[side](self.batches[step % TRAINING_BATCHES])
        loss.backward()
        return loss.detach()

    def _tokenized(self, model: torch.nn.Module) -> list[list[dict[str, Tensor]]]:
        """Batches of queries and documents, padded as PyLate's trainer pads them."""
        collate = utils.ColBERTCollator(tokenize_fn=model.tokenize)
        shuffled = random.Random(SEED).sample(self.pairs, len(self.pairs))
        endless = itertools.cycle(shuffled)
        batches = []
        for _ in range(TRAINING_BATCHES):
            rows = [dict(zip(("query", "positive"), next(endless), strict=True)) for _ in range(TRAINING_BATCH)]
            batch = collate(rows)
            batches.append([_features(batch, column, self.device) for column in ("query", "positive")])
        return batches


def queries_per_call(queries: int, query_length: int, documents: int, document_length: int, budget: int) -> int:
    """How many queries the unpatched library can score at once.

    It builds the grid ``[queries, query tokens, documents, document tokens]`` of float32 and, of its maxima, values and
    int64 indices.

    Parameters
    ----------
    queries, query_length, documents, document_length
        Sizes of the padded collection, lengths in tokens.
    budget
        Available memory in bytes; a part of it is used.
    """
    bytes_per_query = query_length * documents * (document_length * 4 + 12)
    return max(1, min(queries, int(budget * GRID_SHARE) // bytes_per_query))


def first_stage(documents: Sequence[str], queries: Sequence[str], depth: int) -> tuple[tuple[int, ...], ...]:
    """Positions of the ``depth`` documents nearest to each query by TF-IDF: candidates for reranking."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True)
    weights = vectorizer.fit_transform(documents)
    similarities = torch.from_numpy((vectorizer.transform(queries) @ weights.T).toarray())
    nearest = similarities.sort(descending=True, stable=True).indices[:, :depth]
    return tuple(map(tuple, nearest.tolist()))


def _features(batch: dict[str, Tensor], column: str, device: str) -> dict[str, Tensor]:
    """Return the tensors of one column, as the loss wants them."""
    prefix = f"{column}_"
    return {name.removeprefix(prefix): value.to(device) for name, value in batch.items() if name.startswith(prefix)}
