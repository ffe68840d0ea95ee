"""colbert-ai's writing of a chunk: one that is there is whole, so that a build that is resumed can go by it."""

from __future__ import annotations

import os
from typing import Any

import ujson
from colbert.indexing.index_saver import IndexSaver

from li_plugins.api import Decline
from li_plugins_colbert import files


def write_chunk(self: Any, chunk_idx: int, offset: int, compressed_embs: Any, doclens: list[int]) -> Decline | None:
    """Write the codes and residuals of a chunk, the lengths of its passages and, last and at once, its record."""
    refusal = _unwritten(self)
    if refusal:
        return refusal
    folder = self.config.index_path_
    compressed_embs.save(os.path.join(folder, str(chunk_idx)))
    files.write_text(os.path.join(folder, f"doclens.{chunk_idx}.json"), ujson.dumps(doclens))
    record = {"passage_offset": offset, "num_passages": len(doclens), "num_embeddings": len(compressed_embs)}
    files.write_text(os.path.join(folder, f"{chunk_idx}.metadata.json"), ujson.dumps(record))
    return None


def explain_write_chunk(self: Any, chunk_idx: int, offset: int, compressed_embs: Any, doclens: list[int]) -> object:
    """Say how a chunk is written."""
    return _unwritten(self) or "four files, the last one at once"


def _unwritten(saver: Any) -> Decline | None:
    if not isinstance(saver, IndexSaver):
        return Decline(f"called on {type(saver).__name__}, which is no IndexSaver")
    return None
