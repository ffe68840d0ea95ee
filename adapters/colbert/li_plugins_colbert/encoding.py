"""colbert-ai's encoding: the mask of tokens in one comparison, and each passage of a small collection only once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from colbert.indexing.collection_encoder import CollectionEncoder
from colbert.infra.run import Run
from torch import Tensor

from li_plugins.api import Decline
from li_plugins_colbert._config import unserved

INTEGERS = (torch.int64, torch.int32, torch.int16)
KEPT = "_li_plugins_kept"
"""Where an encoder has the embeddings of the sample until the next call."""
MOST_PASSAGES = 25_000
"""The library's chunk: beyond, its second encoding cuts other batches than the first, with other roundings."""


class Kept(NamedTuple):
    """What the last call returned, the embeddings in the precision in which the index takes them."""

    passages: list[str]
    embeddings: Tensor
    lengths: list[int]


def mask(self: Any, input_ids: Tensor, skiplist: Any) -> list[list[bool]] | Decline:
    """Return for each token of ``input_ids [texts, length]`` whether it is neither padding nor in ``skiplist``."""
    refusal = _unmasked(self, input_ids, skiplist)
    if refusal:
        return refusal
    # the keys of a skiplist are the punctuation marks and their ids; only an id can equal a token
    skipped = [token for token in (*skiplist, self.pad_token) if isinstance(token, int)]
    ids = input_ids.cpu().long()
    return torch.isin(ids, torch.tensor(skipped, dtype=torch.int64), invert=True).tolist()


def explain_mask(self: Any, input_ids: Tensor, skiplist: Any) -> object:
    """Say whether ``mask`` is one comparison."""
    return _unmasked(self, input_ids, skiplist) or f"one torch.isin with up to {len(skiplist) + 1} tokens on the CPU"


def encode_passages(self: Any, passages: list[str]) -> tuple[Tensor, list[int]] | Decline:
    """Return the embeddings ``[T, dim]`` of passages one after the other, and how many tokens each has.

    The library encodes a sample to train centroids, and then everything. Where the sample is everything, in the same
    order and in one chunk, the second time gives the embeddings of the first, rounded to float16 as the index has them.
    """
    refusal = _unencoded(self, passages)
    if refusal:
        return refusal
    Run().print(f"#> Encoding {len(passages)} passages..")
    kept: Kept | None = vars(self).pop(KEPT, None)
    if kept is not None and kept.passages == passages:
        return kept.embeddings.float(), kept.lengths
    embeddings, lengths = [], []
    step = self.config.index_bsize * 50
    with torch.inference_mode():
        for start in range(0, len(passages), step):
            tokens, counts = self.checkpoint.docFromText(
                passages[start : start + step],
                bsize=self.config.index_bsize,
                keep_dims="flatten",
                showprogress=True,
                pool_factor=self.config.pool_factor,
                clustering_mode=self.config.clustering_mode,
                protected_tokens=self.config.protected_tokens,
            )
            embeddings.append(tokens)
            lengths.extend(counts)
        result = torch.cat(embeddings)
        if kept is None and len(passages) <= MOST_PASSAGES:
            setattr(self, KEPT, Kept(list(passages), result.half(), list(lengths)))
    return result, lengths


def explain_encode_passages(self: Any, passages: list[str]) -> object:
    """Say whether these passages have to be encoded."""
    kept: Kept | None = getattr(self, KEPT, None)
    known = kept is not None and kept.passages == passages
    return _unencoded(self, passages) or ("kept from the sample" if known else f"the encoder, for {len(passages)}")


def _unmasked(model: Any, input_ids: Any, skiplist: Any) -> Decline | None:
    if type(input_ids) is not Tensor or input_ids.dim() != 2 or input_ids.dtype not in INTEGERS:
        return Decline("input_ids are no plain tensor [texts, length] of int64, int32 or int16")
    if type(skiplist) not in (list, dict, set, tuple):
        return Decline(f"skiplist of type {type(skiplist).__name__}: needs a list, a set or a dictionary")
    tokens = (*skiplist, getattr(model, "pad_token", None))
    if not all(token is None or isinstance(token, (str, int)) for token in tokens):
        return Decline("skiplist holds something else than ids and the marks that they stand for")
    return None


def _unencoded(encoder: Any, passages: Any) -> Decline | None:
    if not isinstance(encoder, CollectionEncoder) or type(passages) is not list or not passages:
        return Decline("no list of passages: the library's own answer is the right one")
    return unserved(encoder.use_gpu)
