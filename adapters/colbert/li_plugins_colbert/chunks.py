"""colbert-ai's writing of chunks: one that is there is whole, and one that cannot be written ends the build.

In the library an error ends the thread that writes, and the build waits forever for room in its queue.
"""

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


def write_chunks(self: Any) -> Decline | None:
    """Write chunks as they come. After one that cannot be written none is, but they are taken: someone waits for it."""
    refusal = _unwritten(self)
    if refusal:
        return refusal
    for chunk in iter(self.saver_queue.get, None):
        if _failure(self) is None:
            try:
                self._write_chunk_to_disk(*chunk)
            except BaseException as error:
                self.li_plugins_failure = error
    return None


def explain_write_chunks(self: Any) -> object:
    """Say what an error of the thread leads to."""
    return _unwritten(self) or "an error is raised where the build hands over its next chunk, or at its end"


def save_chunk(self: Any, chunk_idx: int, offset: int, embs: Any, doclens: list[int]) -> Decline | None:
    """Compress a chunk and hand it to the thread that writes; raises what kept that from writing an earlier one."""
    refusal = _unwritten(self)
    if refusal:
        return refusal
    raise_failure(self)
    self.saver_queue.put((chunk_idx, offset, self.codec.compress(embs), doclens))
    return None


def explain_save_chunk(self: Any, chunk_idx: int, offset: int, embs: Any, doclens: list[int]) -> object:
    """Say where a chunk goes."""
    return _unwritten(self) or "to the thread that writes, unless an earlier chunk could not be written"


def raise_failure(saver: Any) -> None:
    """Raise what kept a saver from writing a chunk, if anything did."""
    found = _failure(saver)
    if found is not None:
        raise found


def _failure(saver: Any) -> BaseException | None:
    return getattr(saver, "li_plugins_failure", None)


def _unwritten(saver: Any) -> Decline | None:
    if not isinstance(saver, IndexSaver):
        return Decline(f"called on {type(saver).__name__}, which is no IndexSaver")
    return None
