"""The rows that ``li-plugins tune`` measured on this machine: one JSON file, read once, written whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from li_plugins.errors import BadInput

logger = logging.getLogger("li_plugins.ops")

VERSION = 1
"""Of what a row's blocks mean; rows of other versions are kept in the file and not used."""

_WHAT = "li-plugins tuning"

Row = Mapping[str, "int | None"]
"""How a kernel is cut and launched, by the name of each number."""


def location() -> str | None:
    """Return where the file is: what ``LI_PLUGINS_TUNING`` says, or in the user's cache; ``None`` if it says 0."""
    named = os.environ.get("LI_PLUGINS_TUNING", "").strip()
    if named == "0":
        return None
    if named:
        return os.path.abspath(os.path.expanduser(named))
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # as its specification asks
        cache = os.path.expanduser(os.path.join("~", ".cache"))
    return os.path.join(cache, "li_plugins", "tuning.json")


@lru_cache(maxsize=1)
def rows() -> Mapping[str, Row]:
    """Return the stored rows by key, read at the first call; none, and one warning, if the file makes no sense."""
    path = location()
    if path is None:
        return {}
    try:
        return {row["key"]: row["blocks"] for row in _read(path) if row["version"] == VERSION}
    except BadInput as problem:
        logger.warning("li_plugins: %s; built-in blocks are used", problem)
        return {}


def forget() -> None:
    """Read the file again when the next row is asked for."""
    rows.cache_clear()


def check() -> str:
    """Return where rows would be stored.

    Raises
    ------
    BadInput
        When ``LI_PLUGINS_TUNING`` is 0, something else is in the file's place, or its folder cannot be written.
    """
    path = location()
    if path is None:
        raise BadInput("a place for the rows", "LI_PLUGINS_TUNING=0", "unset it, or name a file, or ask for a dry run")
    _read(path)
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        found = f"{folder}, where nothing can be written"
        raise BadInput(f"a place for {path}", found, "name another file with LI_PLUGINS_TUNING, or ask for a dry run")
    return path


def store(found: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Merge rows into the file and return where it is.

    Parameters
    ----------
    found
        By key: ``{"blocks": Row, "measured": {...}}``, or ``None`` to drop the row that is there.

    Raises
    ------
    BadInput
        As ``check``.
    OSError
        When the file cannot be written.
    """
    path = check()
    kept = [row for row in _read(path) if row["version"] != VERSION or row["key"] not in found]
    new = [{"version": VERSION, "key": key, **row} for key, row in found.items() if row is not None]
    _write(path, {"what": _WHAT, "rows": [*kept, *new]})
    forget()
    return path


def _read(path: str) -> list[dict[str, Any]]:
    """Return the rows of every version."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:  # unreadable; not UTF-8 or not JSON; nested without end
        raise _problem(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or content.get("what") != _WHAT or not isinstance(content.get("rows"), list):
        raise _problem(path, "something else")
    for row in content["rows"]:
        if not _is_row(row):
            raise _problem(path, f"the row {str(row)[:200]}")
    return content["rows"]


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("version"), int) or not isinstance(row.get("key"), str):
        return False
    blocks = row.get("blocks")
    if not isinstance(blocks, dict):
        return False
    return row["version"] != VERSION or all(value is None or type(value) is int for value in blocks.values())


def _problem(path: str, found: str) -> BadInput:
    return BadInput(
        f"rows of `li-plugins tune` in {path}",
        found,
        "move the file away and tune again, name another one with LI_PLUGINS_TUNING, or ignore it with "
        "LI_PLUGINS_TUNING=0",
    )


def _write(path: str, content: Mapping[str, Any]) -> None:
    """Write the file in one step, so that a process that reads it meets the old rows or the new ones."""
    path = os.path.realpath(path)  # a link stays one
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):  # nothing was written, or nothing can be removed: the first error tells more
            os.remove(beside)
        raise
