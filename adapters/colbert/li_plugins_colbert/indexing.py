"""colbert-ai's ``Indexer``: an index that is built anew stays what it is until its replacement is complete.

The library erases the index first, and a build that fails or is killed leaves nothing that can be searched.
"""

from __future__ import annotations

import copy
import os
import time
from typing import Any

import ujson
from colbert import indexer

from li_plugins.api import Decline
from li_plugins_colbert import files, staging
from li_plugins_colbert.damage import METADATA, PLAN, DamagedIndex, is_finished, unreadable

SILENTLY = "force_silent_overwrite"
SECONDS = 20
"""How long the library waits before it erases an index."""


def index(self: Any, name: str, collection: Any, overwrite: Any = False) -> str | Decline:
    """Build an index and return its folder.

    ``overwrite=True`` on a finished index builds beside it, in a folder called as it with ``.building`` at the end, and
    exchanges both. ``'resume'`` continues such a build, if there is one. All else is as in the library.
    """
    refusal = _unserved(self, overwrite)
    if refusal:
        return refusal
    self.configure(collection=collection, index_name=name, resume=overwrite == "resume")
    self.configure(bsize=64, partitions=None)
    self.index_path = path = self.config.index_path_
    staging.recover(path)
    is_new = not os.path.exists(path)
    if not (overwrite or is_new):
        raise AssertionError(path)  # as the library does
    indexer.create_directory(path)
    staging.remove_leftovers(path)
    folder = None if is_new or overwrite == "reuse" else _folder_beside(path, overwrite)
    if folder is not None:
        _replace(self, folder, collection, warned=overwrite is True)
        return path
    if overwrite in (True, SILENTLY):
        self.erase(force_silent=overwrite == SILENTLY)
    if is_new or overwrite != "reuse":
        self._Indexer__launch(collection)
    elif staging.is_unfinished(path):
        indexer.print_message(_advice(path))
    return path


def explain_index(self: Any, name: str, collection: Any, overwrite: Any = False) -> object:
    """Say where an index would be built."""
    return _unserved(self, overwrite) or "beside a finished index that it replaces, else in its own folder"


def _folder_beside(path: str, overwrite: Any) -> str | None:
    """Return the folder in which an index is built that replaces the one at ``path``; ``None``: there itself."""
    resume = overwrite == "resume"
    if not (staging.is_unfinished(path) if resume else is_finished(path)):
        return None
    try:
        return staging.open_beside(path, resume=resume)
    except OSError as error:
        indexer.print_message(f"#> Nothing can be built beside {path}, which is built in place: {error}")
        return None


def _replace(self: Any, folder: str, collection: Any, *, warned: bool) -> None:
    """Build an index in ``folder`` and put it in the place of the one that there is."""
    path = self.index_path
    own = self.config
    self.config = copy.copy(own)  # the collection may be in it
    self.config.assigned = dict(own.assigned)
    self.config.configure(index_path=folder)
    is_complete = False
    try:
        if warned:
            _warn(path)
        self._Indexer__launch(collection)
        metadata = os.path.join(folder, METADATA)
        missing = unreadable(metadata)
        if missing:
            raise DamagedIndex(metadata, missing, "look for the error of the process that built it")
        for name in (PLAN, METADATA):
            _move(os.path.join(folder, name), own.index_path)
        staging.exchange(path, [name for name in os.listdir(path) if not _is_of_the_library(os.path.join(path, name))])
        is_complete = True
    finally:
        self.config = own
        if not is_complete:
            indexer.print_message(_advice(path))


def _warn(path: str) -> None:
    """Give the time to think again that the library gives before it erases an index."""
    count = sum(_is_of_the_library(os.path.join(path, name)) for name in os.listdir(path))
    indexer.print_message(
        f"#> Will build in {SECONDS} seconds, and then replace the {count} files already at {path}..."
    )
    time.sleep(SECONDS)


def _advice(path: str) -> str:
    return f"#> The index at {path} is what it was. {staging.advice(path)}"


def _is_of_the_library(file: str) -> bool:
    """Return whether the library's ``erase`` removes a file."""
    is_record = file.endswith(".json") and any(word in file for word in ("metadata", "doclen", "plan"))
    return is_record or file.endswith(".pt")


def _move(file: str, index_path: str | None) -> None:
    """Give the configuration in a record of an index the path that it was configured with."""
    with open(file) as stream:
        record = ujson.load(stream)
    record["config"]["index_path"] = index_path
    files.write_text(file, ujson.dumps(record, indent=4) + "\n")


def _unserved(made: Any, overwrite: Any) -> Decline | None:
    if not isinstance(made, indexer.Indexer):
        return Decline(f"called on {type(made).__name__}, which is no Indexer")
    if overwrite is not True and overwrite is not False and overwrite not in ("reuse", "resume", SILENTLY):
        return Decline(f"overwrite={overwrite!r}: colbert-ai's own answer is the right one")
    return None
