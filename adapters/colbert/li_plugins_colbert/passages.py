"""colbert-ai's encoding of a collection: each passage of a small one only once.

Apart from the mask of tokens: a module of replacements imports no library's module but that of its own targets, whose
import may have only begun.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from colbert.indexing.collection_encoder import CollectionEncoder
from colbert.infra.run import Run
from torch import Tensor

from li_plugins.api import Decline
from li_plugins_colbert import trimmed

KEEPS = "_li_plugins_keeps"
"""What an encoder has while its indexer encodes the sample, which it may ask for again."""
KEPT = "_li_plugins_kept"
"""Where an encoder has the embeddings of the sample until the next call."""
MOST_PASSAGES = 25_000
"""The library's chunk: beyond, its second encoding cuts other batches than the first, with other roundings."""
CHECKPOINT = "colbert.modeling.checkpoint", "Checkpoint"
"""The class whose methods are known, by name: it is not imported here, as above."""
REPLACEABLE = frozenset({"docFromText", "doc"})
"""Methods of a checkpoint; one that somebody replaced on the object is called as the library calls it."""


class Kept(NamedTuple):
    """What the last call returned, the embeddings in the precision in which the index takes them."""

    passages: list[str]
    embeddings: Tensor
    dtype: torch.dtype
    lengths: list[int]


def encode_passages(self: Any, passages: list[str]) -> tuple[Tensor, list[int]] | Decline:
    """Return the embeddings ``[T, dim]`` of passages one after the other, and how many tokens each has.

    The library's indexer encodes a sample to train centroids, and then everything. Where the sample is everything, in
    the same order and in one chunk, the second time gives the embeddings of the first, rounded to float16 as the index
    has them. Nobody else gets what was encoded before.
    """
    refusal = _unencoded(self, passages)
    if refusal:
        return refusal
    Run().print(f"#> Encoding {len(passages)} passages..")
    kept: Kept | None = vars(self).pop(KEPT, None)
    if kept is not None and kept.passages == passages:
        return kept.embeddings.to(kept.dtype), kept.lengths
    embeddings, lengths = [], []
    step = self.config.index_bsize * 50
    with torch.inference_mode():
        for start in range(0, len(passages), step):
            tokens, counts = _encode(self, passages[start : start + step])
            embeddings.append(tokens)
            lengths.extend(counts)
        result = embeddings[0] if len(embeddings) == 1 else torch.cat(embeddings)
        if KEEPS in vars(self) and len(passages) <= MOST_PASSAGES:
            setattr(self, KEPT, Kept(list(passages), result.half(), result.dtype, list(lengths)))
    return result, lengths


def _encode(encoder: Any, passages: list[str]) -> tuple[Tensor, list[int]]:
    checkpoint, config = encoder.checkpoint, encoder.config
    usual = (type(checkpoint).__module__, type(checkpoint).__qualname__) == CHECKPOINT
    if usual and not REPLACEABLE & vars(checkpoint).keys() and config.pool_factor == 1:
        return trimmed.encode(checkpoint, passages, config.index_bsize, showprogress=not encoder.use_gpu)
    return checkpoint.docFromText(
        passages,
        bsize=config.index_bsize,
        keep_dims="flatten",
        showprogress=not encoder.use_gpu,
        pool_factor=config.pool_factor,
        clustering_mode=config.clustering_mode,
        protected_tokens=config.protected_tokens,
    )


def explain_encode_passages(self: Any, passages: list[str]) -> object:
    """Say whether these passages have to be encoded."""
    kept: Kept | None = getattr(self, KEPT, None)
    known = kept is not None and kept.passages == passages
    return _unencoded(self, passages) or ("kept from the sample" if known else f"the encoder, for {len(passages)}")


def _unencoded(encoder: Any, passages: Any) -> Decline | None:
    if not isinstance(encoder, CollectionEncoder) or type(passages) is not list or not passages:
        return Decline("no list of passages: the library's own answer is the right one")
    return None
