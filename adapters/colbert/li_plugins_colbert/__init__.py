"""colbert-ai's targets, as data; read by the host without importing colbert-ai."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from li_plugins.api import Adapter, Target, hookimpl

_RELEASES = "0.2.21 - 0.2.22"
_CODEC = "colbert.indexing.codecs.residual:ResidualCodec"
_INDEXER = "colbert.indexing.collection_indexer:CollectionIndexer"
_SAVER = "colbert.indexing.index_saver:IndexSaver"
_CANDIDATES = "colbert.search.candidate_generation:CandidateGeneration"
_ASSIGNED, _BINARIZED, _LOOKED_UP, _MASKED = "256766d0", "8090f622", "f23b1aad", "6a425b87"
_RETRIEVED, _RANKED = "2e27f739", ["f5c843d3", "5f10f252"]


def _target(path: str, replacement: str, body: str | Mapping[str, str]) -> Target:
    """Return a target with its replacement in this package and, in the same module, what explains it."""
    module, _, name = replacement.partition(":")
    return Target(
        path,
        f"li_plugins_colbert.{replacement}",
        bodies={_RELEASES: body} if isinstance(body, str) else body,
        explain=f"li_plugins_colbert.{module}:explain_{name}",
    )


@hookimpl
def li_plugins_adapters() -> list[Adapter]:
    """Offer colbert-ai's scores, training, index building and search without its C++ and CUDA, and without faiss."""
    return [
        Adapter(
            "colbert",
            requires="colbert-ai>=0.2.21,<0.2.23",
            summary="colbert-ai: nothing to compile, no faiss, streamed codec, fused scores, loss and search",
            targets=[
                _target(
                    "colbert.modeling.colbert:ColBERT.try_load_torch_extensions",
                    "extensions:load_for_colbert",
                    "cc5481e9",
                ),
                _target(
                    "colbert.search.strided_tensor:StridedTensor.try_load_torch_extensions",
                    "extensions:load_for_strided_tensor",
                    "b8d1c7ad",
                ),
                _target(
                    "colbert.search.index_storage:IndexScorer.try_load_torch_extensions",
                    "extensions:load_for_index_scorer",
                    "a90dcfeb",
                ),
                _target(
                    f"{_CODEC}.try_load_torch_extensions",
                    "extensions:load_for_residual_codec",
                    "5820841f",
                ),
                _target("colbert.infra.launcher:Launcher.__init__", "launching:init", "b4fc2e52"),
                Target(
                    "colbert.modeling.colbert:ColBERT.query",
                    "li_plugins_colbert.encoding:query",
                    bodies={_RELEASES: "a5a76bcf"},
                    explain="li_plugins_colbert.encoding:explain_query",
                    also={"colbert.modeling.colbert:ColBERT.mask": [_MASKED]},
                ),
                Target(
                    "colbert.modeling.colbert:ColBERT.doc",
                    "li_plugins_colbert.encoding:doc",
                    bodies={_RELEASES: "40a5002b"},
                    explain="li_plugins_colbert.encoding:explain_doc",
                    also={"colbert.modeling.colbert:ColBERT.mask": [_MASKED]},
                ),
                _target("colbert.modeling.colbert:ColBERT.mask", "encoding:mask", _MASKED),
                _target(
                    "colbert.indexing.collection_encoder:CollectionEncoder.encode_passages",
                    "passages:encode_passages",
                    "5f34c7ba",
                ),
                _target("colbert.modeling.colbert:ColBERT.forward", "training:forward", "917a04f1"),
                _target("colbert.modeling.colbert:ColBERT.compute_ib_loss", "training:compute_ib_loss", "d234b9b5"),
                _target("colbert.modeling.colbert:colbert_score", "scoring:colbert_score", "869cd30c"),
                _target("colbert.modeling.colbert:colbert_score_packed", "scoring:colbert_score_packed", "97c5c0e2"),
                _target("colbert.modeling.colbert:colbert_score_reduce", "scoring:colbert_score_reduce", "0592c0d8"),
                Target(
                    f"{_CODEC}.compress",
                    "li_plugins_colbert.codec:compress",
                    bodies={_RELEASES: "173e7e79"},
                    explain="li_plugins_colbert.codec:explain_compress",
                    also={
                        f"{_CODEC}.compress_into_codes": [_ASSIGNED],
                        f"{_CODEC}.binarize": [_BINARIZED],
                        f"{_CODEC}.lookup_centroids": [_LOOKED_UP],
                    },
                ),
                _target(f"{_CODEC}.compress_into_codes", "codec:compress_into_codes", _ASSIGNED),
                _target(f"{_CODEC}.binarize", "codec:binarize", _BINARIZED),
                _target(f"{_CODEC}.decompress", "codec:decompress", "85e65450"),
                _target(
                    "colbert.indexing.collection_indexer:compute_faiss_kmeans",
                    "clustering:compute_faiss_kmeans",
                    "e992541c",
                ),
                _target("colbert.indexer:Indexer.index", "indexing:index", "95ed73f0"),
                _target(f"{_SAVER}.save_chunk", "chunks:save_chunk", "2e0c3df1"),
                _target(f"{_SAVER}._saver_thread", "chunks:write_chunks", "9ca47671"),
                _target(f"{_SAVER}._write_chunk_to_disk", "chunks:write_chunk", "0471221b"),
                _target(f"{_INDEXER}._sample_embeddings", "sampling:sample_embeddings", "82e980ea"),
                _target(f"{_INDEXER}._collect_embedding_id_offset", "collection:collect_offsets", "27fcf488"),
                _target(f"{_INDEXER}._build_ivf", "collection:build_ivf", "b5202b82"),
                _target("colbert.indexing.utils:optimize_ivf", "inverted:optimize_ivf", "6f45466e"),
                _target(f"{_INDEXER}._update_metadata", "collection:update_metadata", "0cd8b877"),
                _target(
                    "colbert.infra.config.base_config:BaseConfig.load_from_index",
                    "records:load_from_index",
                    "8982189e",
                ),
                _target("colbert.search.index_loader:IndexLoader.__init__", "loading:init", "ddd45cfc"),
                Target(
                    f"{_CANDIDATES}.generate_candidates",
                    "li_plugins_colbert.candidates:generate_candidates",
                    bodies={_RELEASES: "21b175d5"},
                    explain="li_plugins_colbert.candidates:explain_generate_candidates",
                    also={
                        f"{_CANDIDATES}.generate_candidate_pids": ["006ea97c"],
                        f"{_CANDIDATES}.get_cells": ["e2b8169f"],
                    },
                ),
                Target(
                    "colbert.search.index_storage:IndexScorer.rank",
                    "li_plugins_colbert.ranking:rank",
                    bodies={"0.2.21": _RANKED[0], "0.2.22": _RANKED[1]},
                    explain="li_plugins_colbert.ranking:explain_rank",
                    also={"colbert.search.index_storage:IndexScorer.retrieve": [_RETRIEVED]},
                ),
                Target(
                    "colbert.searcher:Searcher._search_all_Q",
                    "li_plugins_colbert.batches:search_all_q",
                    bodies={_RELEASES: "666fd7f0"},
                    explain="li_plugins_colbert.batches:explain_search_all_q",
                    also={
                        "colbert.searcher:Searcher.dense_search": ["5f435339"],
                        "colbert.search.index_storage:IndexScorer.rank": _RANKED,
                        "colbert.search.index_storage:IndexScorer.retrieve": [_RETRIEVED],
                    },
                ),
                _target(
                    "colbert.search.index_storage:IndexScorer.score_pids",
                    "search:score_pids",
                    {"0.2.21": "4e8d2c47", "0.2.22": "f943f320"},
                ),
            ],
        )
    ]


@hookimpl
def li_plugins_restored(record: Any) -> None:
    """Give back the memory of indexes on a GPU with the functions that search them there."""
    residency = sys.modules.get("li_plugins_colbert.residency")
    if residency is not None and record.adapter == "colbert":
        residency.forget()
