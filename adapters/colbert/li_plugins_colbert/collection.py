"""The end of colbert-ai's build of an index: what its chunks have together."""

from __future__ import annotations

from typing import Any

import torch
from colbert.indexing import collection_indexer
from torch import Tensor

from li_plugins.api import Decline

MOST_CENTROIDS = 2**31
"""Codes are int32 in the files."""


def build_ivf(self: Any) -> Decline | None:
    """Save the passages of each centroid from the codes of all chunks: half the memory of the library's int64 codes."""
    refusal = _unbuilt(self)
    if refusal:
        return refusal
    _say(self, "#> Building IVF...")
    _say(self, "#> Loading codes...")
    codes = _codes(self)
    _say(self, "Sorting codes...")
    # embeddings are numbered in the order of their passages, which a stable sort leaves to each centroid
    codes, embeddings = codes.sort(stable=True)
    _say(self, "Getting unique codes...")
    lengths = torch.bincount(codes, minlength=self.num_partitions)
    assert lengths.size(0) == self.num_partitions, f"a code is beyond the {self.num_partitions} centroids"
    del codes
    collection_indexer.optimize_ivf(embeddings, lengths, self.config.index_path_)
    return None


def explain_build_ivf(self: Any) -> object:
    """Say how the codes of the index would be sorted."""
    return _unbuilt(self) or f"one stable sort of {self.num_embeddings} int32 codes on the CPU"


def _codes(indexer: Any) -> Tensor:
    """Return the codes of all chunks one after the other, int32."""
    codes = torch.zeros(indexer.num_embeddings, dtype=torch.int32)
    end = 0
    for chunk in collection_indexer.tqdm.tqdm(range(indexer.num_chunks)):
        found = collection_indexer.ResidualCodec.Embeddings.load_codes(indexer.config.index_path_, chunk)
        start = indexer.embedding_offsets[chunk]
        end = start + len(found)
        codes[start:end] = found
    assert end == len(codes), f"{indexer.config.index_path_} has {end} codes of {len(codes)} embeddings"
    return codes


def _say(indexer: Any, message: str) -> None:
    if indexer.verbose > 1:
        collection_indexer.Run().print_main(message)


def _unbuilt(indexer: Any) -> Decline | None:
    if not isinstance(indexer, collection_indexer.CollectionIndexer):
        return Decline(f"called on {type(indexer).__name__}, which is no CollectionIndexer")
    if not indexer.num_chunks or indexer.num_partitions >= MOST_CENTROIDS:
        return Decline(f"{indexer.num_chunks} chunks, {indexer.num_partitions} centroids: codes are no int32 numbers")
    return None
