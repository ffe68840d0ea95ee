"""The one session: enables and disables adapters, and keeps the ledger of what it did to this process."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from li_plugins import api
from li_plugins.errors import LiPluginsError, PatchRefused, PluginBroken, RestoreRefused, UnknownAdapter
from li_plugins.host import patch
from li_plugins.host.carrier import Carried
from li_plugins.host.config import Config, set_up_logging, spelled
from li_plugins.host.discovery import CONTAINED, Discovery
from li_plugins.host.ledger import Desk, Seat
from li_plugins.host.names import dotted, load
from li_plugins.host.report import Row, Status
from li_plugins.host.watch import Watcher

logger = logging.getLogger("li_plugins")

SUSPENDED = "suspended: the originals run until the block ends"
SWITCHED_OFF = "LI_PLUGINS=0 in the environment keeps every adapter off, whatever the code asks for"


class Session:
    """All that li-plugins did to this process; the public functions act on the one instance, ``SESSION``.

    Thread-safe. The lock guards the ledger and is never held while a plugin or a library is imported: another thread's
    import may wait for us at its end, and we for that import.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watcher = Watcher()
        self._config = Config()
        self._discovery: Discovery | None = None
        self._withdraw: Callable[[], None] | None = None
        self._discovering: set[int] = set()
        self._postponed: list[Callable[[], object]] = []
        self._desks: dict[str, Desk] = {}
        self._suspensions = 0
        self._told: set[str] = set()
        self._notes: list[str] = []
        self._propagated: tuple[str | None, str] | None = None

    # What users ask for.

    def enable(
        self, names: Sequence[str] | None = None, *, strict: bool | None = None, propagate: bool = False
    ) -> Status:
        """Enable the named adapters, or all but opt-in ones when ``names`` is ``None``; see ``li_plugins.enable``."""
        discovery = self._discover()
        if discovery is None:
            self._postponed.append(partial(self.enable, names, strict=strict, propagate=propagate))
            return self.status()
        for name in names or ():
            if name not in discovery.adapters:
                raise UnknownAdapter(name, discovery.adapters)
        config = self._configure(strict)
        failures: list[LiPluginsError] = [*config.problems, *(PluginBroken(*broken) for broken in discovery.broken)]
        if config.switch == "off":
            self._tell(logging.INFO, SWITCHED_OFF)
        else:
            everything = (name for name, offer in discovery.adapters.items() if not offer.adapter.opt_in)
            for name in everything if names is None else names:
                failures += self._enable(name, explicit=names is not None)
            if propagate:
                self._propagate(names)
        if config.strict and failures:
            raise failures[0]
        return self.status()

    def enable_from_environment(self) -> None:
        """Do what ``LI_PLUGINS`` says; a name that nobody offers is reported and does not stop the others."""
        config = Config.read()
        if config.switch not in ("all", "some"):
            return
        discovery = self._discover()
        if discovery is None:
            self._postponed.append(self.enable_from_environment)
            return
        unknown = [UnknownAdapter(name, discovery.adapters) for name in config.names if name not in discovery.adapters]
        for error in unknown:
            # in strict mode the exception says it, once
            self._note(
                f"LI_PLUGINS={','.join(config.names)}: {error}", logging.DEBUG if config.strict else logging.WARNING
            )
        known = [name for name in config.names if name in discovery.adapters]
        if config.switch == "all":
            self.enable()
        if known or config.switch == "some":
            self.enable(known)
        if config.strict and unknown:
            raise unknown[0]

    def disable(self, names: Iterable[str] | None = None) -> None:
        """Give back the functions of the named adapters, or of all of them; see ``li_plugins.disable_all``."""
        with self._lock:
            if names is None:
                self._stop_propagating()
            seats = self._seats(names)
            for seat in seats:
                seat.wanted = False
            restored, refused = self._undo(seats)
        self._announce_restored(restored)
        if refused:
            raise refused[0]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Run the originals inside the block; see ``li_plugins.suspended``."""
        restored: list[patch.PatchRecord] = []
        refused: list[RestoreRefused] = []
        with self._lock:
            self._suspensions += 1
            if self._suspensions == 1:
                restored, refused = self._undo(self._seats())
        try:
            self._announce_restored(restored)
            if refused:
                raise refused[0]
            yield
        finally:
            with self._lock:
                self._suspensions -= 1
                seats = [seat for seat in self._seats() if self._active(seat)]
            for seat in seats:
                self._watch(seat)

    def status(self) -> Status:
        """Return what is patched, what is not, and why."""
        discovery = self._discover()
        if discovery is None:
            return Status((), ("plugins are being loaded; ask again afterwards",))
        config = Config.read()
        with self._lock:
            rows = [row for desk in self._all_desks(discovery) for row in desk.rows(config)]
            rows += [Row(plugin, "", "broken", 0, 0, reason) for plugin, reason in discovery.broken]
            rows += _quarantined_kernels()
            notes = [*map(str, config.problems), *self._notes]
            if config.switch == "off":
                notes.append(SWITCHED_OFF)
            if self._suspensions:
                notes.append(SUSPENDED)
            declines = {seat.target.path: dict(seat.declines) for seat in self._seats() if seat.declines}
        return Status(tuple(rows), tuple(notes), declines)

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Return calls and declines by reason of each target since the process began, undone patches included."""
        with self._lock:
            return {seat.target.path: (seat.calls, dict(seat.declines)) for seat in self._seats()}

    @property
    def is_suspended(self) -> bool:
        """Whether somebody is inside a block of ``suspended()``."""
        return self._suspensions > 0

    def enabled(self) -> tuple[str, ...]:
        """Return the names of the adapters that are enabled, none while they are suspended."""
        with self._lock:
            return tuple(name for name, desk in self._desks.items() if any(map(self._active, desk.seats)))

    def desks(self) -> list[Desk]:
        """Return every adapter's desk, in the order of discovery."""
        discovery = self._discover()
        if discovery is None:
            return []
        with self._lock:
            return self._all_desks(discovery)

    def close(self) -> None:
        """Disable everything; withdraw the plugins' kernels, and what carries functions to other processes."""
        try:
            self.disable()
        finally:
            if self._withdraw is not None:
                api.carriers.remove(self._carry)
                self._withdraw()
                self._withdraw = self._discovery = None

    # How it is done.

    def _discover(self) -> Discovery | None:
        """Return the plugins, or ``None`` while this very thread is loading them.

        That happens when a plugin's module imports torch, whose end calls the environment gate. Of two threads that
        load them at the same time the first to finish is heard, so that no lock is held during foreign imports.
        """
        if self._discovery is not None:
            return self._discovery
        thread = threading.get_ident()
        if thread in self._discovering:
            return None
        self._discovering.add(thread)
        try:
            found = Discovery(Config.read())
        finally:
            self._discovering.discard(thread)
        with self._lock:
            if self._discovery is None:
                self._discovery, self._withdraw = found, found.publish()
                api.carriers.append(self._carry)
            postponed, self._postponed = self._postponed, []
        for request in postponed:
            request()
        return self._discovery

    def _carry(self, function: Callable[..., Any]) -> Carried:
        return Carried(function, self.enabled)

    def _configure(self, strict: bool | None) -> Config:
        config = Config.read(strict=strict)
        with self._lock:
            self._config = config
        set_up_logging(config)
        for problem in config.problems:
            self._tell(logging.WARNING, str(problem))
        return config

    def _all_desks(self, discovery: Discovery) -> list[Desk]:
        """Return all desks, each with its present release; the caller holds the lock."""
        for name, offer in discovery.adapters.items():
            self._desks.setdefault(name, Desk(*offer)).look()
        return [self._desks[name] for name in discovery.adapters]

    def _seats(self, names: Iterable[str] | None = None) -> list[Seat]:
        desks = self._desks.values() if names is None else [self._desks[name] for name in names if name in self._desks]
        return [seat for desk in desks for seat in desk.seats]

    def _active(self, seat: Seat) -> bool:
        return seat.wanted and not self._suspensions

    def _enable(self, name: str, *, explicit: bool) -> list[LiPluginsError]:
        """Enable one adapter; return what a strict caller wants raised."""
        assert self._discovery is not None
        with self._lock:
            desk = self._desks.setdefault(name, Desk(*self._discovery.adapters[name]))
            desk.look()
            closed = None if desk.busy else desk.closed(self._config)
            seats = [] if closed else list(desk.seats)
            for seat in seats:
                seat.wanted = True
                if seat.state == "off":
                    seat.state = "armed"
        if closed:
            state, reason = closed
            if state == "absent" and not explicit:
                return []  # nobody has all the libraries; whoever names one wants to know
            self._tell(logging.WARNING, f"adapter {name!r} is {state}: {reason}")
            return [PatchRefused(name, state, reason, "the library's own functions keep running")]
        for seat in seats:
            if self._active(seat):
                self._watch(seat)
        return [seat.error for seat in seats if seat.error is not None]

    def _watch(self, seat: Seat) -> None:
        """Patch a target when its module is ready: at once, at the end of its import, or whenever it comes."""
        importing = False

        def ready(module: ModuleType) -> None:
            self._patch(seat)
            if importing and seat.error is not None and self._config.strict:
                raise seat.error

        unwatch = self._watcher.when_ready(seat.target.module, ready)
        importing = True  # from here on it is somebody's import that calls; before, it was us
        with self._lock:
            former, seat.unwatch = seat.unwatch, unwatch
            if not self._active(seat):  # another thread disabled it meanwhile
                seat.unwatch = None
                unwatch()
        if former is not None:
            former()

    def _patch(self, seat: Seat) -> None:
        """Patch one target whose module is ready; never raises, ``seat.error`` tells."""
        with self._lock:
            if not self._active(seat):
                return
        adapter, release = seat.desk.adapter, seat.desk.release
        try:
            replacement = load(seat.target.replacement)  # before the lock: it imports
            with self._lock:
                if not self._active(seat):
                    return
                record = patch.apply(
                    adapter.name,
                    seat.target,
                    replacement,
                    version=release.version,
                    untested=self._config.untested,
                    on_decline=partial(self._declined, seat),
                )
                seat.state, seat.error = "patched", None
                if record in seat.records:  # another thread was faster, or it was enabled before
                    return
                seat.records.append(record)
        except PatchRefused as error:
            seat.state, seat.error = "refused", error
            self._tell(logging.WARNING, f"refused: {error}")
        except CONTAINED as error:
            seat.state = "broken"
            seat.error = PluginBroken(seat.desk.plugin, f"{seat.target.replacement}: {type(error).__name__}: {error}")
            logger.debug("li_plugins: %s", seat.target.path, exc_info=True)
            self._tell(logging.WARNING, str(seat.error))
        else:
            logger.info("li_plugins: patched %s of %s %s", dotted(seat.target.path), adapter.name, release.version)
            self._notify("li_plugins_patched", record=record)

    def _undo(self, seats: Sequence[Seat]) -> tuple[list[patch.PatchRecord], list[RestoreRefused]]:
        """Unpatch targets, the last one first; a refusal stops nothing. The caller holds the lock."""
        restored, refused = [], []
        for seat in reversed(seats):
            if seat.unwatch is not None:
                seat.unwatch()
                seat.unwatch = None
            seat.error = None
            for record in reversed(list(seat.records)):
                try:
                    patch.undo(record)
                except RestoreRefused as error:
                    seat.error = error
                    refused.append(error)
                else:
                    seat.forget(record)
                    restored.append(record)
            if not seat.records:
                seat.state = "armed" if seat.wanted else "off"
        return restored, refused

    def _announce_restored(self, records: Iterable[patch.PatchRecord]) -> None:
        for record in records:
            logger.info("li_plugins: restored %s", dotted(record.target.path))
            self._notify("li_plugins_restored", record=record)

    def _declined(self, seat: Seat, record: patch.PatchRecord, reason: str) -> None:
        """Hear of a decline: log it and tell the plugins, once for each target and reason."""
        if self._tell(logging.INFO, f"{dotted(seat.target.path)} kept the original: {reason} (once)"):
            self._notify("li_plugins_declined", target=seat.target, reason=reason)

    def _notify(self, hook: str, **arguments: object) -> None:
        if self._discovery is not None:
            self._discovery.notify(hook, **arguments)

    def _tell(self, level: int, message: str) -> bool:
        """Log a message unless it was logged before; return whether it is new."""
        new = message not in self._told
        self._told.add(message)
        if new:
            logger.log(level, "li_plugins: %s", message)
        return new

    def _note(self, message: str, level: int = logging.WARNING) -> None:
        if self._tell(level, message):
            self._notes.append(message)

    def _propagate(self, names: Sequence[str] | None) -> None:
        """Set ``LI_PLUGINS`` for child processes, never to less than it says."""
        assert self._discovery is not None
        with self._lock:
            found = os.environ.get("LI_PLUGINS")
            config = Config.read()
            everything = names is None or config.switch == "all"
            named = [*config.names, *(names or ())]
            if everything:
                opt_in = [name for name, offer in self._discovery.adapters.items() if offer.adapter.opt_in]
                named = [name for name in named if name in opt_in]
            value = spelled(everything, named)
            former = self._propagated[0] if self._propagated else found
            os.environ["LI_PLUGINS"] = value
            self._propagated = (former, value)

    def _stop_propagating(self) -> None:
        """Give ``LI_PLUGINS`` its former value, unless somebody else changed it meanwhile."""
        if self._propagated is None:
            return
        (former, ours), self._propagated = self._propagated, None
        if os.environ.get("LI_PLUGINS") == ours:
            if former is None:
                del os.environ["LI_PLUGINS"]
            else:
                os.environ["LI_PLUGINS"] = former


def _quarantined_kernels() -> list[Row]:
    """Ask the operations, if anybody has imported them: the host does not."""
    dispatch = sys.modules.get("li_plugins.ops.dispatch")
    kernels: dict[tuple[str, str], str] = getattr(dispatch, "quarantined", dict)()
    return [Row(op, "", "quarantined", 0, 0, f"kernel {name!r} could not be compiled, the next one runs: {reason}")
            for (op, name), reason in kernels.items()]  # fmt: skip


SESSION = Session()
"""The session of this process."""
