"""Call back when a module is ready: imported before, being imported, imported later, or reloaded."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import _bootstrap
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from li_plugins.errors import LiPluginsError

logger = logging.getLogger("li_plugins")

Callback = Callable[[ModuleType], object]

_WAITING = "_li_plugins_waiting"


class Watcher:
    """A finder on ``sys.meta_path`` that tells when modules are ready, and itself imports nothing.

    It is on the path only while something is watched. Callbacks run outside its lock, in the thread that imports; what
    they raise is logged and never reaches the import, unless it is an error of ours, raised on purpose.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[str, tuple[_Watch, ...]] = {}  # replaced, never changed: imports read it without the lock
        self._doubtful: tuple[_Watch, ...] = ()  # likewise; looked at again at the next import, of whatever
        self._searches: set[tuple[int, str]] = set()

    def when_ready(self, module_name: str, callback: Callback) -> Callable[[], None]:
        """Call ``callback(module)`` once the module is ready, and again after each reload; return the undo.

        A module that is ready calls back before this returns. One that is being imported calls back at the end of its
        import; a failed import does not count, a later attempt does.
        """
        watch = _Watch(module_name, callback)
        with self._lock:
            self._watches = {**self._watches, module_name: (*self._watches.get(module_name, ()), watch)}
            if self not in sys.meta_path:
                sys.meta_path.insert(0, self)
        self._look(watch)
        return partial(self._forget, watch)

    def close(self) -> None:
        """Undo every watch, which takes the finder off ``sys.meta_path``; the watcher may be used again."""
        for watch in [watch for watches in self._watches.values() for watch in watches]:
            self._forget(watch)

    def _forget(self, watch: _Watch) -> None:
        with self._lock:
            watch.active = False
            watches = {**self._watches, watch.name: _without(watch, self._watches.get(watch.name, ()))}
            self._watches = {name: watching for name, watching in watches.items() if watching}
            self._doubtful = _without(watch, self._doubtful)
            if not self._watches and self in sys.meta_path:
                sys.meta_path.remove(self)

    def _look(self, watch: _Watch) -> None:
        """See how far the module's import is; tell at once, at the end of the import, or look again when in doubt."""
        module = sys.modules.get(watch.name)
        if module is None:
            # `find_spec` sees the import when it comes, unless one of another thread is past that point already.
            in_doubt = watch.name in getattr(_bootstrap, "_module_locks", ())
        else:
            in_doubt = not _at_end_of_import(getattr(module, "__spec__", None), partial(self._import_ended, watch))
        with self._lock:
            self._doubtful = _without(watch, self._doubtful) + ((watch,) if in_doubt and watch.active else ())

    def _import_ended(self, watch: _Watch) -> None:
        module = sys.modules.get(watch.name)
        if module is not None:  # else the import failed, and the import system took the module away
            self._tell(watch, module)

    def _executed(self, name: str, module: ModuleType) -> None:
        module = sys.modules.get(name, module)  # a module may put another object in its place
        for watch in self._watches.get(name, ()):
            self._tell(watch, module)

    def _tell(self, watch: _Watch, module: ModuleType) -> None:
        spec = getattr(module, "__spec__", None)
        with self._lock:
            # Each import and each reload has a spec of its own; two of our ways may lead to the same end.
            if not watch.active or (spec is not None and watch.told is spec):
                return
            watch.told = spec
        try:
            watch.callback(module)
        except LiPluginsError:
            raise  # on purpose: strict mode's word to whoever imports
        except (Exception, SystemExit):
            # Whatever a stranger's code raises here, the import that it watched has succeeded.
            logger.exception("li_plugins: what waited for the import of %s failed", watch.name)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer the import system: for a watched module what the finders behind would, with a loader that tells."""
        for watch in self._doubtful:
            self._look(watch)
        if fullname not in self._watches:
            return None
        search = (threading.get_ident(), fullname)
        if search in self._searches:  # another finder of our kind asks all the others, as we do
            return None
        self._searches.add(search)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            self._searches.discard(search)
        if spec is None:
            return None
        if hasattr(spec.loader, "exec_module"):
            spec.loader = _TellingLoader(spec.loader, partial(self._executed, fullname))  # type: ignore[assignment]
        else:  # a namespace package on Python 3.10, or a loader from before exec_module
            with self._lock:
                self._doubtful += self._watches.get(fullname, ())
        return spec

    def _ask_others(self, *query: Any) -> ModuleSpec | None:
        """Walk the finders behind this one.

        Not by ``importlib.util.find_spec``, which would start with this one again and import parent packages.
        """
        finders = list(sys.meta_path)
        behind = finders[finders.index(self) + 1 :] if self in finders else finders
        specs = (finder.find_spec(*query) for finder in behind if hasattr(finder, "find_spec"))
        return next((spec for spec in specs if spec is not None), None)


class _Watch:
    """One wish to be called back."""

    __slots__ = ("active", "callback", "name", "told")

    def __init__(self, name: str, callback: Callback) -> None:
        self.name, self.callback = name, callback
        self.active = True
        self.told: ModuleSpec | None = None


def _without(watch: _Watch, watches: tuple[_Watch, ...]) -> tuple[_Watch, ...]:
    return tuple(other for other in watches if other is not watch)


class _TellingLoader:
    """A loader that tells when it has executed a module, and is in all else the loader that it stands for."""

    __slots__ = ("_executed", "_loader")

    def __init__(self, loader: Any, executed: Callable[[ModuleType], None]) -> None:
        self._loader, self._executed = loader, executed

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_loader"), name)

    def exec_module(self, module: ModuleType) -> None:
        """Take this loader out of sight, execute the module, tell."""
        for holder, attribute in ((module.__spec__, "loader"), (module, "__loader__")):
            if getattr(holder, attribute, None) is self:
                setattr(holder, attribute, self._loader)
        self._loader.exec_module(module)
        self._executed(module)


class _TellingSpec(ModuleSpec):
    """The spec of a module that is being imported: tells when the import system sets ``_initializing`` to False."""

    @property
    def _initializing(self) -> bool:
        return bool(vars(self)["_initializing"])

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        vars(self)["_initializing"] = value
        if not value:
            for waiting in _end(self):
                waiting()


_spec_lock = threading.Lock()


def _at_end_of_import(spec: Any, then: Callable[[], None]) -> bool:
    """Call ``then`` at the end of the import that the spec belongs to, at once if it is over; False if impossible.

    The import system sets ``_initializing`` on the spec for as long as the import lasts, be its end good or bad.
    """
    with _spec_lock:
        lasts = getattr(spec, "_initializing", False)
        if lasts:
            try:
                attributes = vars(spec)
                if not isinstance(spec, _TellingSpec):
                    spec.__class__ = type("TellingSpec", (_TellingSpec, type(spec)), {})
            except TypeError:  # a spec of foreign make: it has no dictionary, or its class cannot be changed
                return False
            attributes.setdefault(_WAITING, []).append(then)
            if attributes["_initializing"]:
                return True
            # It ended a moment ago, before the spec could tell.
    for waiting in _end(spec) if lasts else [then]:
        waiting()
    return True


def _end(spec: ModuleSpec) -> list[Callable[[], None]]:
    """Give a telling spec its own class back; return what waits for the end of its import."""
    with _spec_lock:
        if isinstance(spec, _TellingSpec):
            spec.__class__ = type(spec).__bases__[1]
        waiting: list[Callable[[], None]] = vars(spec).pop(_WAITING, [])
        return waiting
