"""An index that is mapped into memory has the codes and residuals that are in its files.

``colbert/indexing/codecs/residual_embeddings.py``: ``ResidualEmbeddings.load_chunks`` maps a file of ``torch.save``
from byte 320 on, where the data of old releases of torch began. It begins later today (torch 2.13: at byte 704): what
is mapped is shifted, garbage without an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from li_plugins.api import Decline


def load_chunks(
    cls: Any,
    index_path: Any,
    chunk_idxs: Any,
    num_embeddings: Any,
    load_index_with_mmap: bool = False,
    *,
    original: Any = None,
) -> Any:
    """Return codes ``[N]`` int32 and residuals ``[N, dim * nbits / 8]`` uint8; of one chunk, if they are mapped."""
    if not load_index_with_mmap:
        return original(cls, index_path, chunk_idxs, num_embeddings)
    if len(chunk_idxs) != 1:
        return Decline(f"{len(chunk_idxs)} chunks cannot be mapped: the library's own error is the answer")
    codes, residuals = (
        torch.load(Path(index_path) / f"0.{part}.pt", map_location="cpu", mmap=True, weights_only=True)
        for part in ("codes", "residuals")
    )
    return cls(codes, residuals)
