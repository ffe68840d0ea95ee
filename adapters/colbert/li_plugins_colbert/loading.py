"""colbert-ai's loading of an index: what is damaged is named, with what to do."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from colbert.search import index_loader

from li_plugins_colbert import residency
from li_plugins_colbert.damage import damage
from li_plugins_colbert.staging import advice, is_unfinished


def init(self: Any, index_path: str, use_gpu: bool = True, load_index_with_mmap: bool = False) -> None:
    """Load an index; one that is searched on a GPU is copied there as far as it fits, see ``residency``.

    Raises
    ------
    DamagedIndex
        One of its files is missing, cut off or not what was written. What else fails has the library's own error.
    """
    self.index_path = index_path
    self.use_gpu = use_gpu
    self.load_index_with_mmap = load_index_with_mmap
    if is_unfinished(index_path):
        index_loader.print_message(f"#> {advice(index_path)}")
    # beside the library, which reads the same files: it takes about as long
    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(damage, index_path, is_loaded=True, is_mapped=load_index_with_mmap)
        try:
            self._load_codec()
            self._load_ivf()
            self._load_doclens()
            self._load_embeddings()
        except Exception as error:  # whatever torch, ujson and the library's assertions make of a file that is cut off
            reported = damage(index_path) if os.path.isdir(index_path) else None
            if reported is None:
                raise
            raise reported from error
    reported = checked.result()
    if reported is not None:
        raise reported
    if use_gpu and self.codec.use_gpu:
        residency.of(self)


def explain_init(self: Any, index_path: str, use_gpu: bool = True, load_index_with_mmap: bool = False) -> object:
    """Say what happens when the index cannot be loaded."""
    return "the library's own steps; a file that cannot be read is named"
