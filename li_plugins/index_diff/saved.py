"""Files that ``torch.save`` wrote: read without running code, and found to be damaged where they are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from li_plugins.errors import BadInput
from li_plugins.ops.checksums import flaw

REMEDY = "copy the folder again, or build the index again"


def check(path: Path) -> None:
    """Compare every byte with the checksums in the file; see ``flaw``.

    Raises
    ------
    BadInput
        When they do not agree.
    """
    found = flaw(path)
    if found is not None:
        raise BadInput(f"{path} is as torch.save wrote it", found, f"it is damaged: {REMEDY}")


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


def _begins_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
