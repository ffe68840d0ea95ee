"""The rows that go before the built-in blocks: what ``li-plugins tune`` stored on this machine, or has on trial."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from li_plugins.ops import recipes
from li_plugins.ops.launch import Options
from li_plugins.ops.maxsim import tuning_file
from li_plugins.ops.maxsim.tuning_file import Row
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes, power_of_two

logger = logging.getLogger("li_plugins.ops")


class _Remembering(Protocol):
    """A function under ``lru_cache``."""

    def cache_clear(self) -> None: ...


_Choice = TypeVar("_Choice", bound=_Remembering)

_OPTIONS = ("num_warps", "num_stages", "maxnreg")

FIELDS = {
    "scores": ("ROWS", "BLOCK_N", "documents", *_OPTIONS),
    "winners": ("ROWS", "BLOCK_N", "documents", *_OPTIONS),
    "queries": ("ROWS", "VISITS", "BLOCK_D", *_OPTIONS),
    "documents": ("ENTRIES", "BLOCK_D", *_OPTIONS),
}
"""What a stored row says, by phase: the forward without and with winners, and the gradients (the documents' sorted).

Of a forward, ``ROWS`` are the most that a tile has, and ``documents`` may be left to the built-in choice (``None``).
"""

_LEAST = {"ROWS": 16, "BLOCK_N": 16, "BLOCK_D": 16, "ENTRIES": 16}
"""What a product on tensor cores, and a dimension of a tile, needs at least; the queries' gradient has no product."""

_MAY_BE_NONE = ("documents", "maxnreg")

_trial: Mapping[str, Row | None] | None = None
"""Rows to use instead of those that are stored; ``None``: those that are stored."""

_distrusted = False
"""Whether stored rows are ignored from now on: one of them did not work."""

_choices: list[_Remembering] = []
"""What forgets its choices when the rows are others."""


def chooses_by_row(choice: _Choice) -> _Choice:
    """Mark a function under ``lru_cache`` that asks for a row: it chooses anew when the rows are others."""
    _choices.append(choice)
    return choice


def key(phase: str, sizes: Sizes, card: Card) -> str:
    """Return what a row is stored by: exact where the kernel is another one, else the next power of two."""
    return (
        f"{phase} sm_{card.capability} x{card.processors} {'packed ' if sizes.is_packed else ''}{sizes.layout} "
        f"{sizes.element_size}-byte {'halved ' if sizes.is_halved else ''}d={sizes.width} "
        f"Lq={power_of_two(sizes.query_length)} Ld={power_of_two(sizes.document_length)} "
        f"rows={power_of_two(sizes.queries * sizes.query_length)} "
        f"documents={power_of_two(sizes.documents)}"
    )


def stored(phase: str, sizes: Sizes, card: Card) -> Row | None:
    """Return the row that was stored for problems such as this, if there is one."""
    if _trial is not None:
        return _trial.get(key(phase, sizes, card))
    rows = {} if _distrusted else tuning_file.rows()
    row = rows.get(key(phase, sizes, card)) if rows else None
    if row is None:
        return None
    problem = _misfit(phase, row)
    if problem:
        distrust(f"{problem} in the row for {key(phase, sizes, card)}")
        return None
    return row


def number(row: Row, name: str) -> int:
    """Return a number that is in every row of its phase."""
    value = row[name]
    assert value is not None  # _misfit
    return value


def options(row: Row) -> Options:
    """Return how the row's kernel is compiled."""
    return Options(number(row, "num_warps"), number(row, "num_stages"), row["maxnreg"])


@contextmanager
def trial(rows: Mapping[str, Row | None]) -> Iterator[None]:
    """Use these rows, by key, and none that are stored; for the whole process."""
    global _trial
    before, _trial = _trial, rows
    _choose_anew()
    try:
        yield
    finally:
        _trial = before
        _choose_anew()


def distrust(why: str) -> bool:
    """Ignore the stored rows from now on, with one warning; tell whether any could have been in use."""
    global _distrusted
    if _trial is not None or _distrusted or not tuning_file.rows():
        return False
    _distrusted = True
    _choose_anew()
    logger.warning(
        "li_plugins: %s holds a row that does not work here (%s); built-in blocks are used. Run `li-plugins tune` "
        "again for your shapes, remove the file, or ignore it with LI_PLUGINS_TUNING=0",
        tuning_file.location(),
        why.splitlines()[0] if why else "no reason is given",
    )
    return True


def forget() -> None:
    """Read the stored rows again, and choose anew."""
    global _distrusted
    _distrusted = False
    tuning_file.forget()
    _choose_anew()


def _choose_anew() -> None:
    for choice in _choices:
        choice.cache_clear()
    recipes.forget()


def _misfit(phase: str, row: Row) -> str:
    """Return what is wrong with a row, or nothing."""
    if set(row) != set(FIELDS[phase]):
        return f"{', '.join(row) or 'nothing'} instead of {', '.join(FIELDS[phase])}"
    for name, value in row.items():
        least = 1 if phase == "queries" and name == "ROWS" else _LEAST.get(name, 1)
        if value is None and name in _MAY_BE_NONE:
            continue
        if value is None or not least <= value <= 1024:
            return f"{name}={value}"
        if name not in ("documents", "num_stages", "maxnreg") and value & (value - 1):
            return f"{name}={value}, no power of two,"
    return ""
