"""An index can be updated: passages added, removed, and kept on disk.

``colbert/index_updater.py``, ``IndexUpdater``:

* ``_load_disk_ivf`` keeps the zeros that ``ivf.pid.pt`` ends with: ``add`` fails at an assertion, and ``remove`` of
  passage 0, which the zeros read as, with an ``IndexError``;
* ``persist_to_disk`` adds the embeddings of all passages to ``num_embeddings``, where those of the new ones are meant:
  the next searcher takes twice the memory, and whoever then adds passages to it finds other embeddings in their place;
* it removes before it writes, so that a passage that was added and removed again is not there to be removed:
  ``ValueError``; and with more than one chunk it counts passages in floats: ``TypeError`` when a chunk is full.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from colbert.utils.utils import print_message

_library: Any = sys.modules["colbert.index_updater"]
"""Loaded: its class is what is patched."""


def load_disk_ivf(self: Any, *, original: Any = None) -> None:
    """Load the passages of each centroid, one centroid after the other, without what is behind the last."""
    original(self)
    self.curr_ivf = self.curr_ivf[: int(self.curr_ivf_lengths.sum())]


def persist_to_disk(self: Any) -> None:
    """Write what was added and removed since the last time to the files of the index."""
    print_message("#> Persisting index changes to disk")
    self._load_metadata()
    _write_added(self)
    path = Path(self.index_path)
    (path / "metadata.json").write_text(json.dumps(self.metadata))
    for pid in self.removed_pids:
        self._remove_passage_from_disk(pid)
    torch.save((self.curr_ivf, self.curr_ivf_lengths), path / "ivf.pid.pt")
    self.removed_pids = []


def _write_added(updater: Any) -> None:
    """Fill the last chunk up with the new passages, then write chunks of the average size; count them in."""
    lengths = updater.searcher.ranker.doclens
    chunks = updater.metadata["num_chunks"]
    last = updater._load_chunk_metadata(chunks - 1)
    size = last["passage_offset"] // (chunks - 1) if chunks > 1 else _library.DEFAULT_CHUNKSIZE
    room = max(0, size - last["num_passages"])
    while updater.first_new_pid < len(lengths):
        start, embedding = updater.first_new_pid, updater.first_new_emb
        end = min(len(lengths), start + (room or size))
        embeddings = int(lengths[start:end].sum())
        span = (start, end, embedding, embedding + embeddings)
        if room:
            updater._write_to_last_chunk(*span)
        else:
            updater._write_to_new_chunk(updater.metadata["num_chunks"], *span)
            updater.metadata["num_chunks"] += 1
        updater.metadata["num_embeddings"] += embeddings
        updater.first_new_pid, updater.first_new_emb = end, embedding + embeddings
        room = 0
