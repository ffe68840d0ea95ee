"""Token embeddings of a collection: encoded once, kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retrieval_demo.collection import Collection

if TYPE_CHECKING:
    from pylate.models import ColBERT

BATCH = 32

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class Embeddings:
    """One float tensor ``[tokens, dim]`` per query and per document, in the collection's order."""

    queries: list[Tensor]
    documents: list[Tensor]

    def to(self, device: str) -> Embeddings:
        """Copy to a device."""
        return Embeddings([item.to(device) for item in self.queries], [item.to(device) for item in self.documents])

    def save(self, path: Path) -> None:
        """Write both sides to a file that appears only when it is complete."""
        partial = path.with_suffix(".partial")
        torch.save({side: _packed(getattr(self, side)) for side in ("queries", "documents")}, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Embeddings:
        """Read what ``save`` wrote."""
        return cls(**{side: list(tokens.split(lengths)) for side, (tokens, lengths) in torch.load(path).items()})


def encode_once(
    model: ColBERT, collection: Collection, digest: str, folder: Path, progress: Progress
) -> tuple[Path, Embeddings]:
    """Encode a collection, or read what an earlier run encoded with the same model.

    Parameters
    ----------
    model, collection
        What encodes, and what is encoded.
    digest
        Tells this model from others; see ``model_digest``.
    folder
        Where the file is kept.
    progress
        Given a title and a number of texts, a context whose value is told how many texts were encoded.
    """
    path = folder / f"embeddings-{cache_key(collection, digest)}.pt"
    if not path.is_file():
        with progress("encoding queries", len(collection.queries)) as advance:
            queries = encode(model, collection.queries, is_query=True, advance=advance)
        with progress("encoding documents", len(collection.documents)) as advance:
            documents = encode(model, collection.documents, is_query=False, advance=advance)
        Embeddings(queries, documents).save(path)
    return path, Embeddings.load(path)


def cache_key(collection: Collection, model_digest: str) -> str:
    """Name for the embeddings of these texts by this model."""
    digest = hashlib.sha256(model_digest.encode())
    for text in (*collection.queries, "", *collection.documents):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:12]


def encode(model: ColBERT, texts: Sequence[str], *, is_query: bool, advance: Callable[[int], object]) -> list[Tensor]:
    """Encode texts with PyLate, longest first, on the CPU side of memory.

    Empty texts are encoded as PyLate does it: their embeddings are those of the special tokens.

    Parameters
    ----------
    model, texts, is_query
        As for ``ColBERT.encode``.
    advance
        Told how many texts were encoded since the last call.
    """
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    embeddings: list[Tensor | None] = [None] * len(texts)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        encoded = model.encode(
            [texts[index] for index in batch],
            batch_size=BATCH,
            is_query=is_query,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        for index, tokens in zip(batch, encoded, strict=True):
            embeddings[index] = tokens.cpu()
        advance(len(batch))
    return embeddings


def _packed(items: list[Tensor]) -> tuple[Tensor, list[int]]:
    """All tokens in one tensor, and how many belong to each item."""
    return torch.cat(items), [len(item) for item in items]
