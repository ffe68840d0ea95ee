"""The end of colbert-ai's build of an index: what its chunks have together."""

from __future__ import annotations

import os
from typing import Any

import torch
import ujson
from colbert.indexing import collection_indexer
from torch import Tensor

from li_plugins.api import Decline
from li_plugins_colbert import files
from li_plugins_colbert.chunks import raise_failure
from li_plugins_colbert.damage import METADATA, DamagedIndex, chunk_files, of_chunk, unreadable

MOST_CENTROIDS = 2**31
"""Codes are int32 in the files."""


def collect_offsets(self: Any) -> Decline | None:
    """Write into the record of each chunk which embedding of the index is its first; the records stay whole."""
    refusal = unlike_indexer(self)
    if refusal:
        return refusal
    raise_failure(self.saver)
    passages = embeddings = 0
    self.embedding_offsets = []
    for chunk in range(self.num_chunks):
        file = os.path.join(self.config.index_path_, chunk_files(chunk)[-1])
        found = unreadable(file)
        if found:
            raise DamagedIndex(file, found, of_chunk(chunk))
        with open(file) as stream:
            record = ujson.load(stream)
        record["embedding_offset"] = embeddings
        self.embedding_offsets.append(embeddings)
        assert record["passage_offset"] == passages, (chunk, passages, record)
        passages += record["num_passages"]
        embeddings += record["num_embeddings"]
        files.write_text(file, ujson.dumps(record, indent=4) + "\n")
    self.num_embeddings = embeddings
    return None


def explain_collect_offsets(self: Any) -> object:
    """Say how many records would be written."""
    return unlike_indexer(self) or f"{self.num_chunks} records, each at once"


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


def update_metadata(self: Any) -> Decline | None:
    """Write the metadata of the index at once: with them it is finished."""
    refusal = unlike_indexer(self)
    if refusal:
        return refusal
    self.metadata_path = os.path.join(self.config.index_path_, METADATA)
    if self.verbose > 1:
        collection_indexer.Run().print("#> Saving the indexing metadata to", self.metadata_path, "..")
    record = {
        "config": self.config.export(),
        "num_chunks": self.num_chunks,
        "num_partitions": self.num_partitions,
        "num_embeddings": self.num_embeddings,
        "avg_doclen": self.num_embeddings / len(self.collection),
    }
    files.write_text(self.metadata_path, ujson.dumps(record, indent=4) + "\n")
    return None


def explain_update_metadata(self: Any) -> object:
    """Say how the metadata are written."""
    return unlike_indexer(self) or "one file, at once"


def _codes(indexer: Any) -> Tensor:
    """Return the codes of all chunks one after the other, int32."""
    codes = torch.zeros(indexer.num_embeddings, dtype=torch.int32)
    end = 0
    for chunk in collection_indexer.tqdm.tqdm(range(indexer.num_chunks)):
        found = _codes_of_chunk(indexer.config.index_path_, chunk)
        start = indexer.embedding_offsets[chunk]
        end = start + len(found)
        codes[start:end] = found
    assert end == len(codes), f"{indexer.config.index_path_} has {end} codes of {len(codes)} embeddings"
    return codes


def _codes_of_chunk(folder: str, chunk: int) -> Tensor:
    try:
        codes: Tensor = collection_indexer.ResidualCodec.Embeddings.load_codes(folder, chunk)
    except Exception as error:  # whatever torch makes of a file that is cut off
        file = os.path.join(folder, chunk_files(chunk)[0])
        found = unreadable(file)
        if found is None:
            raise
        raise DamagedIndex(file, found, of_chunk(chunk)) from error
    return codes


def _say(indexer: Any, message: str) -> None:
    if indexer.verbose > 1:
        collection_indexer.Run().print_main(message)


def unlike_indexer(indexer: Any) -> Decline | None:
    """Decline what is no indexer of colbert-ai."""
    if not isinstance(indexer, collection_indexer.CollectionIndexer):
        return Decline(f"called on {type(indexer).__name__}, which is no CollectionIndexer")
    return None


def _unbuilt(indexer: Any) -> Decline | None:
    refusal = unlike_indexer(indexer)
    if refusal:
        return refusal
    if not indexer.num_chunks or indexer.num_partitions >= MOST_CENTROIDS:
        return Decline(f"{indexer.num_chunks} chunks, {indexer.num_partitions} centroids: codes are no int32 numbers")
    return None
