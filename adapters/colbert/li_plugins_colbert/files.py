"""Files that are whole or not there: whoever is killed while writing one leaves what was there before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTIAL = "partial"
"""A folder inside of an index, for one process at a time, and the beginning of names."""


def write_text(file: str, text: str) -> None:
    """Write a text file as a whole; other processes may write others beside it."""
    folder, name = os.path.split(file)
    # what the library erases of an index, it erases of a name like this too
    partial = os.path.join(folder, f"{PARTIAL}.{name}")
    with open(partial, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def save(tensors: Any, file: str) -> None:
    """Write tensors as a whole, with the bytes that ``torch.save`` gives a file of this name."""
    with _whole(file) as partial:  # torch writes the name of the file into the file
        torch.save(tensors, partial)


def copy(source: str, target: str) -> None:
    """Copy a file, a link or a folder as a whole."""
    with _whole(target) as partial:
        if os.path.isdir(source) and not os.path.islink(source):
            shutil.copytree(source, partial, symlinks=True)
        else:
            shutil.copy2(source, partial, follow_symlinks=False)


@contextmanager
def _whole(file: str) -> Iterator[str]:
    """Give a place of the same name in which to write, and move what was written when all is."""
    folder, name = os.path.split(file)
    partial = os.path.join(folder, PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    yield os.path.join(partial, name)
    os.replace(os.path.join(partial, name), file)
    os.rmdir(partial)
