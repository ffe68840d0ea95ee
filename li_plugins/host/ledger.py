"""The ledger's entries: one desk for each adapter, one seat for each of its targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from li_plugins.api import Adapter, Target
from li_plugins.errors import LiPluginsError, PatchRefused
from li_plugins.host.config import Config
from li_plugins.host.patch import PatchRecord
from li_plugins.host.report import Row, State
from li_plugins.host.requirement import Release, installed_release


@dataclass(eq=False)
class Seat:
    """One target, and what became of it.

    ``wanted`` is what the user asked for, ``state`` what is; ``error`` is why they differ. ``records`` are the patches
    in force, more than one after a reload; the counts of those undone live on in ``past_calls`` and ``past_declines``.
    """

    desk: Desk
    target: Target
    wanted: bool = False
    state: State = "off"
    error: LiPluginsError | None = None
    records: list[PatchRecord] = field(default_factory=list)
    unwatch: Callable[[], None] | None = None
    past_calls: int = 0
    past_declines: Counter[str] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        """Calls of the patched function so far."""
        return self.past_calls + sum(record.counters.calls for record in self.records)

    @property
    def declines(self) -> Counter[str]:
        """How often the original ran, by reason."""
        # `dict()` is one step under the GIL: a call of another thread may add a reason meanwhile.
        return sum((Counter(dict(record.counters.declines)) for record in self.records), self.past_declines.copy())

    @property
    def reason(self) -> str:
        """Why the target is in its state, in words for the user."""
        if isinstance(self.error, PatchRefused):  # the row names the target already
            return f"{self.error.found}; {self.error.known}; {self.error.remedy}"
        if self.error is not None:
            return str(self.error)
        if self.state == "armed":
            return "its module is not imported yet"
        if self.state == "off":
            return "not enabled: only by name" if self.desk.adapter.opt_in else "not enabled"
        declined = "; ".join(f"declined {times}x: {why}" for why, times in self.declines.most_common())
        untested = f"untested release {self.desk.release.version}"
        return "; ".join(filter(None, [untested if self.desk.release.state == "untested" else "", declined]))

    def forget(self, record: PatchRecord) -> None:
        """Drop a patch that was undone, and keep its counts."""
        self.records.remove(record)
        self.past_calls += record.counters.calls
        self.past_declines.update(record.counters.declines)

    def row(self) -> Row:
        """Return what ``status()`` shows."""
        declines = sum(self.declines.values())
        return Row(self.desk.adapter.name, self.target.path, self.state, self.calls, declines, self.reason)


class Desk:
    """One adapter: the plugin that offers it, the installed release of its library, its targets in that release."""

    def __init__(self, adapter: Adapter, plugin: str) -> None:
        self.adapter = adapter
        self.plugin = plugin
        self.release = Release("absent")
        self.seats: list[Seat] = []

    @property
    def busy(self) -> bool:
        """Whether a target is wanted or patched."""
        return any(seat.wanted or seat.records for seat in self.seats)

    def look(self) -> None:
        """Read again which release is installed, unless the desk is busy: what is patched doesn't change under us."""
        if self.busy:
            return
        release = installed_release(self.adapter.requires, self.adapter.since)
        if release == self.release:
            return
        self.release = release
        self.seats = [Seat(self, target) for target in self.adapter.targets
                      if release.state != "absent" and release.has(target.versions)]  # fmt: skip

    def closed(self, config: Config) -> tuple[State, str] | None:
        """Return the state and the reason that keep the whole adapter from being enabled, or ``None``."""
        if self.release.state == "absent":
            return "absent", self.release.reason
        if self.release.state == "untested" and not config.untested:
            return "out-of-range", self.release.reason
        if not self.seats:
            return "out-of-range", f"nothing to patch in {self.adapter.name} {self.release.version}"
        return None

    def rows(self, config: Config) -> list[Row]:
        """Return what ``status()`` shows: one row for each target, or one that says why there are none."""
        closed = None if self.busy else self.closed(config)
        if closed is not None:
            state, reason = closed
            return [Row(self.adapter.name, "", state, 0, 0, reason)]
        return [seat.row() for seat in self.seats]
