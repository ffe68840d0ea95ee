"""What is printed of a comparison: a table of the artifacts, and where the builds part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from li_plugins.index_diff.finding import COLOURS, Finding
from li_plugins.index_diff.lineage import MADE_OF, Diagnosis

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Report:
    """The findings of a comparison, in the order of a build, then those about the meaning of the whole."""

    a: str
    b: str
    findings: tuple[Finding, ...]
    diagnosis: Diagnosis
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs beyond tolerance."""
        return all(finding.severity < 2 for finding in self.findings)

    def finding(self, artifact: str) -> Finding:
        """Return what was found of one artifact."""
        return next(finding for finding in self.findings if finding.artifact == artifact)

    def has(self, artifact: str) -> bool:
        """Return whether an artifact was looked at."""
        return any(finding.artifact == artifact for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, ready for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "findings": [finding.to_dict() for finding in self.findings],
            "diagnosis": self.diagnosis.to_dict(),
            "notes": list(self.notes),
        }

    def __rich_console__(self, console: Any, options: Any) -> Iterator[RenderableType]:
        yield f"A  {escape(self.a)}"
        yield f"B  {escape(self.b)}\n"
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("artifact", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("what was found", overflow="fold")
        order = {name: place for place, name in enumerate(("capture", "files", *MADE_OF))}
        for finding in sorted(self.findings, key=lambda finding: order.get(finding.artifact, len(order))):
            colour = COLOURS[finding.state]
            table.add_row(finding.artifact, f"[{colour}]{finding.state}[/]", escape(finding.text))
        yield table
        yield ""
        yield from (escape(line) for line in self.verdict())
        yield from (f"[dim]{escape(note)}[/]" for note in self.notes)

    def verdict(self) -> list[str]:
        """Return what the findings come to, in a few lines."""
        found = self.diagnosis
        if found.first is None:
            lines = []
            if found.drifts is not None and self.finding(found.drifts).state == "close":
                lines.append(f"First drift, within tolerance: {found.drifts}.")
            others = [finding.artifact for finding in self.findings if finding.severity == 2]
            if others:
                return [*lines, f"No artifact of the build differs; these do: {', '.join(others)}."]
            states = {finding.state for finding in self.findings}
            how = " within tolerance" if "close" in states else ""
            return [*lines, f"The same{how}{', but for the order of centroids' if 'reordered' in states else ''}."]
        lines = []
        for cause in found.causes:
            is_first = cause.artifact == found.first
            lines.append(f"{'First to diverge' if is_first else 'Not explained by it'}: {cause.artifact}.")
            lines.append(f"  Look for: {cause.hint}.")
            if cause.explains:
                lines.append(f"  {'Explains' if is_first else 'It explains'}: {', '.join(cause.explains)}.")
        if found.agrees:
            lines.append(f"The same all the same: {', '.join(found.agrees)}.")
        return lines


@dataclass(frozen=True)
class Injection:
    """A and B compared, and A and what B's build made with artifacts of A."""

    before: Report
    after: Report
    injected: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, ready for JSON."""
        return {
            "injected": list(self.injected),
            "same": self.same,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "explained": list(self.explained),
            "left": list(self.left),
        }

    @property
    def same(self) -> bool:
        """Whether all that was made again agrees with A within tolerance."""
        return not self.left

    @property
    def explained(self) -> tuple[str, ...]:
        """What differed from A and, made again, does not."""
        return tuple(
            name for name in self._made if self._severity(self.before, name) > self._severity(self.after, name)
        )

    @property
    def left(self) -> tuple[str, ...]:
        """What was made again and still differs."""
        return tuple(name for name in self._made if self._severity(self.after, name) == 2)

    @property
    def _made(self) -> list[str]:
        return [name for name in (*MADE_AGAIN, "reconstruction", "rankings") if self.before.has(name)]

    @staticmethod
    def _severity(report: Report, name: str) -> int:
        return report.finding(name).severity

    def __rich_console__(self, console: Any, options: Any) -> Iterator[RenderableType]:
        yield f"A  {escape(self.before.a)}"
        yield f"B  {escape(self.before.b)}, made again with {_listed(self.injected)}\n"
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("artifact", no_wrap=True)
        for title in ("B as it was built", "B made again"):
            table.add_column(title, overflow="fold", ratio=1)
        for name in (*(("capture",) if self.after.has("capture") else ()), *CODEC, *self._made):
            cells = []
            for report in (self.before, self.after):
                found = report.finding(name)
                cells.append(f"[{COLOURS[found.state]}]{found.state}[/]: {escape(found.text)}")
            table.add_row(name, *cells)
        yield table
        yield ""
        yield from (escape(line) for line in self.verdict())

    def verdict(self) -> list[str]:
        """Return what the injection explains, and what it does not."""
        if not self.injected:
            return [
                f"Made again, B differs in {', '.join(self.left)}." if self.left else "Made again, B agrees with A."
            ]
        what = _listed(self.injected)
        lines = [f"Explained by {what}: {', '.join(self.explained)}."] if self.explained else []
        if self.left:
            lines.append(f"Not explained by {what}: {', '.join(self.left)}.")
        return lines or ["What was made again agrees with A within tolerance, as before."]


CODEC, MADE_AGAIN = ("centroids", "buckets"), ("codes", "residuals", "ivf")


def _listed(injected: tuple[str, ...]) -> str:
    return f"A's {' and '.join(injected)}" if injected else "its own artifacts alone"
