"""A folder beside an index in which its replacement is built, and the exchange of both.

The index stays what it is until its replacement is complete. The exchange is one step where the system has one (Linux,
on most file systems); else the index is away for an instant, and whoever is killed in it finds it as ``.replaced``,
which the next use with the adapter puts back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys

from li_plugins_colbert import files
from li_plugins_colbert.damage import has_codec, is_finished

BUILDING, REPLACED, DISCARDED = ".building", ".replaced", ".discarded"
MARK = ".li_plugins_replaced"
"""In an index that is about to be replaced: after the exchange it tells the old folder from an unfinished one."""

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of the system call renameat2."""


def building(index: str) -> str:
    """Return the folder in which the replacement of an index is built."""
    return os.path.realpath(index) + BUILDING


def replaced(index: str) -> str:
    """Return the folder that an index is moved to where both folders cannot be exchanged in one step."""
    return os.path.realpath(index) + REPLACED


def is_unfinished(index: str) -> bool:
    """Return whether a replacement of this index was begun that may be continued, or is being built."""
    folder = building(index)
    return os.path.isdir(folder) and not os.path.exists(os.path.join(folder, MARK))


def advice(index: str) -> str:
    """Say what is to be done with an unfinished replacement of an index."""
    return (
        f"{building(index)} is an index that is being built, or whose build was cut off: continue it with "
        "overwrite='resume', or remove that folder."
    )


def open_beside(index: str, *, resume: bool) -> str:
    """Make the folder for the replacement of an index and return it, empty unless ``resume`` finds a trained codec.

    Raises
    ------
    OSError
        Nothing can be made beside the index, or it cannot be moved; nothing was changed.
    """
    folder = building(index)
    if os.path.ismount(os.path.realpath(index)):
        raise OSError(errno.EXDEV, "a folder where a file system is mounted cannot be exchanged", index)
    # what was sampled to train the codec is gone when its training is killed
    if not (resume and is_unfinished(index) and has_codec(folder)):
        remove_leftovers(index, unfinished=True)
        os.makedirs(folder)
        shutil.copymode(index, folder)
    return folder


def exchange(index: str, others: list[str]) -> None:
    """Put the finished replacement in the place of the index, with ``others`` of the index's files; remove the index.

    Parameters
    ----------
    index
        The folder of the index.
    others
        Names of what the library never wrote into the index: it stays, unless the replacement has a file of that name.
    """
    old, new = os.path.realpath(index), building(index)
    for name in others:
        if name not in (MARK, files.PARTIAL) and not os.path.lexists(os.path.join(new, name)):
            files.copy(os.path.join(old, name), os.path.join(new, name))
    with open(os.path.join(old, MARK), "w"):
        pass
    if not _exchange(old, new):
        os.rename(old, replaced(index))
        os.rename(new, old)
    remove_leftovers(index)


def recover(index: str) -> None:
    """Put an index back that was moved away by an exchange which was cut off."""
    if not os.path.exists(index) and os.path.isdir(replaced(index)) and is_finished(replaced(index)):
        os.rename(replaced(index), os.path.realpath(index))


def remove_leftovers(index: str, *, unfinished: bool = False) -> None:
    """Remove what exchanges left beside an index, and an unfinished replacement if asked; what resists stays."""
    discarded = os.path.realpath(index) + DISCARDED
    shutil.rmtree(discarded, ignore_errors=True)
    for folder in (building(index), replaced(index)):
        is_wanted = folder == building(index) and is_unfinished(index) and not unfinished
        if os.path.isdir(folder) and not is_wanted and not os.path.isdir(discarded):
            # under another name first: half removed it is neither an index nor the beginning of one
            os.rename(folder, discarded)
            shutil.rmtree(discarded, ignore_errors=True)


def _exchange(first: str, second: str) -> bool:
    """Exchange two folders in one step; return whether the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    found = ctypes.get_errno()
    if found in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(found, os.strerror(found), first)
