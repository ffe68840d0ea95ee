"""Files that ``torch.save`` wrote: read without running code, and found to be damaged where they are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from li_plugins.errors import BadInput

REMEDY = "copy the folder again, or build the index again"


def check(path: Path) -> None:
    """Compare every byte with the checksums in the file; torch, which reads it, does not.

    It costs about two thirds of reading the file. Files without checksums (of torch before 1.6, or written after
    ``torch.serialization.set_crc32_options(False)``) pass.

    Raises
    ------
    BadInput
        When they do not agree.
    """
    if not zipfile.is_zipfile(path):
        return  # what else it is, `load` says
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except Exception as error:  # what damaged headers make zipfile raise is not bounded
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if damaged is not None:
        raise _damaged(path, f"another checksum of {damaged!r} in it")


def load(path: Path) -> Any:
    """Return what ``torch.save`` wrote: tensors mapped from the file, no code run.

    Raises
    ------
    BadInput
        When the file is truncated or foreign.
    """
    is_whole = zipfile.is_zipfile(path)
    if not is_whole and _begins_as_archive(path):
        found = f"an archive that ends early, after {path.stat().st_size:,} bytes"
        raise BadInput(f"{path} is a file of torch.save", found, f"it is truncated: {REMEDY}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_whole)
    except Exception as error:  # what foreign bytes make an unpickler raise is not bounded
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadInput(
            f"{path} is a file of torch.save", f"{type(error).__name__}: {reason}", f"truncated or foreign: {REMEDY}"
        ) from error


def _damaged(path: Path, found: str) -> BadInput:
    return BadInput(f"{path} is as torch.save wrote it", found, f"it is damaged: {REMEDY}")


def _begins_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
