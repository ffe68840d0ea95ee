"""What users read: the status table, and the explanation of one call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from li_plugins.api import Decline

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

State = Literal["absent", "out-of-range", "armed", "patched", "refused", "quarantined", "broken", "off"]
"""What became of an adapter or a target.

absent: its library is not installed. out-of-range: in a release that nobody tested. armed: its module is not imported
yet. patched. refused: a gate said no, the original runs. quarantined: a kernel could not be compiled, another one runs.
broken: the plugin failed. off: nobody enabled it.
"""

COLOURS: Mapping[State, str] = {
    "patched": "green",
    "armed": "cyan",
    "refused": "red",
    "broken": "red",
    "quarantined": "red",
    "out-of-range": "yellow",
    "absent": "dim",
    "off": "dim",
}

TABLE_COLUMNS = 110
"""Width of a terminal from which on the table fits."""


class Row(NamedTuple):
    """One target, or one adapter, plugin or operation that has none to show (``target`` is empty then)."""

    adapter: str
    target: str
    state: State
    calls: int
    declines: int
    reason: str


def plain(renderable: RenderableType) -> str:
    """Return what rich would print, as text without colour, as wide as the terminal, at least 160 columns."""
    from rich.console import Console

    width = max(160, shutil.get_terminal_size().columns)  # of a path, a state and a reason side by side
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def quoted(text: str) -> str:
    """Keep rich from reading ``[...]`` in a name or a reason as markup."""
    from rich.markup import escape as quote

    return quote(text)


@dataclass(frozen=True, repr=False)
class Status:
    """What is patched, what is not, and why; prints as a table, in a notebook too.

    Parameters
    ----------
    rows
        One for each target, adapter without targets, broken plugin and quarantined kernel (under its operation).
    notes
        What holds for the whole process: a switch, a suspension, a name in ``LI_PLUGINS`` that nobody offers.
    declines
        How often the original ran, by target and reason.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    declines: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that need somebody's attention: refused targets, broken plugins, quarantined kernels."""
        return tuple(row for row in self.rows if row.state in ("refused", "broken", "quarantined"))

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, ready for JSON."""
        rows = [{**row._asdict(), "declines_by_reason": dict(self.declines.get(row.target, {}))} for row in self.rows]
        return {"rows": rows, "notes": list(self.notes)}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._table() if options.max_width >= TABLE_COLUMNS else self._list(options.max_width)
        yield from (f"[yellow]{quoted(note)}[/]" for note in self.notes)

    def _list(self, width: int) -> str:
        """Return the rows one below the other: in a narrow terminal a table would break every name."""
        lines: list[str] = []
        for row in self.rows:
            counts = f"  {row.calls} calls, {row.declines} declines" if row.target else ""
            lines.append(f"{quoted(row.adapter)}  [{COLOURS[row.state]}]{row.state}[/]{counts}")
            target = row.target if len(row.target) + 2 <= width else row.target.replace(":", ":\n    ")
            lines += [f"  {quoted(text)}" for text in (target, row.reason) if text]
        return "\n".join(lines)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("adapter", overflow="fold")
        # No least width: rich would cut the last column off, not fold it.
        table.add_column("target", overflow="fold")
        table.add_column("state", no_wrap=True)
        table.add_column("calls", justify="right")
        table.add_column("declines", justify="right")
        table.add_column("reason", overflow="fold")
        for row in self.rows:
            counts = (str(row.calls), str(row.declines)) if row.target else ("", "")
            state = f"[{COLOURS[row.state]}]{row.state}[/]"
            table.add_row(quoted(row.adapter), quoted(row.target), state, *counts, quoted(row.reason))
        return table

    def __str__(self) -> str:
        return plain(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in Row._fields)
        body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in self.rows)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


@dataclass(frozen=True, repr=False)
class Explanation:
    """What a call of a function would do, without doing it.

    Parameters
    ----------
    function
        Dotted name of the function.
    state
        State of its target; empty when no adapter names it.
    reason
        Why it is not patched; empty when it is.
    adapter, replacement
        The adapter that names it, and what runs instead of it; empty when no adapter does.
    answer
        What the adapter said to these arguments: a ``Decline``, or a plan that names the kernel and those rejected;
        ``None`` when it was not asked.
    """

    function: str
    state: State | Literal[""] = ""
    reason: str = ""
    adapter: str = ""
    replacement: str = ""
    answer: Any = None

    @property
    def accelerated(self) -> bool:
        """Whether the replacement would run, as far as the arguments that were given tell."""
        return self.state == "patched" and not isinstance(self.answer, Decline)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, ready for JSON."""
        answer = f"declined: {self.answer.reason}" if isinstance(self.answer, Decline) else self.answer
        return {
            "function": self.function,
            "state": self.state,
            "reason": self.reason,
            "adapter": self.adapter,
            "replacement": self.replacement,
            "accelerated": self.accelerated,
            "answer": None if answer is None else str(answer),
        }

    def __str__(self) -> str:
        lines = [f"{self.function}: {self.state or 'not a target'}" + (f" by {self.adapter}" if self.adapter else "")]
        if self.reason:
            lines.append(f"  the original runs: {self.reason}")
        elif isinstance(self.answer, Decline):
            lines.append(f"  {self.replacement} declines, the original runs: {self.answer.reason}")
        else:
            lines.append(f"  {self.replacement} runs")
            lines += [f"  {line}" for line in str(self.answer).splitlines() if self.answer is not None]
        return "\n".join(lines)

    __repr__ = __str__
