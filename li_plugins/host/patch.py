"""Patch a target and give it back: swap a function's code in place, or replace the attribute where there is no code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType, ModuleType
from typing import Any

from li_plugins.api import Target
from li_plugins.errors import BadInput, PatchRefused, RestoreRefused
from li_plugins.host import trampoline
from li_plugins.host.fingerprint import fingerprint, signature_mismatch
from li_plugins.host.hold import Hold, hold_of
from li_plugins.host.place import Place, check, find, innermost
from li_plugins.host.trampoline import Counters
from li_plugins.host.watch import Watcher

__all__ = ["Counters", "PatchRecord", "apply", "original", "record_of", "undo"]


@dataclass(eq=False, frozen=True)
class PatchRecord:
    """A patch that is or was in force.

    Parameters
    ----------
    target, adapter
        What was asked for, and by whom.
    function
        The callable that runs the replacement: the target itself, the same object as ever; for a class or a C callable
        what its owner holds in its place.
    original
        A twin of the target that runs the library's own code; for a class or a C callable the thing itself.
    fingerprint
        The target's body; empty where there is no source.
    counters
        Calls and declines; those of a class are not counted.
    """

    target: Target
    adapter: str
    function: Any
    original: Any
    fingerprint: str
    counters: Counters
    hold: Hold = field(repr=False)


_lock = threading.RLock()
_live: tuple[PatchRecord, ...] = ()  # replaced, never changed: `record_of` reads it without the lock
_torch_watcher = Watcher()


def apply(
    adapter: str,
    target: Target,
    replacement: Callable[..., Any],
    *,
    version: str,
    untested: bool,
    on_decline: Callable[[PatchRecord, str], None],
) -> PatchRecord:
    """Patch a target whose module is imported; return the record, or the live one if it is patched already.

    Parameters
    ----------
    adapter
        Name of the adapter.
    target
        What is patched, and which bodies of it are known.
    replacement
        What runs instead. When it returns a ``Decline``, the original runs with the same arguments; what it raises is
        the caller's to see.
    version
        The library's installed release, for messages.
    untested
        Accept a body that is not known.
    on_decline
        Called with the record and the reason when a reason for declining is new.

    Raises
    ------
    PatchRefused
        The target is missing, was patched by somebody else, cannot be patched, has other parameters than the
        replacement or, unless ``untested``, an unknown body. It is as it was.
    """
    global _live
    with _lock:
        place = find(target.path)
        live = record_of(place.held)
        if live is not None:
            if (live.adapter, live.target.path) == (adapter, target.path):
                return live
            raise PatchRefused(
                target.path,
                f"adapter {live.adapter!r} patched it already, as {live.target.path}",
                "one patch at a time",
                f"disable {live.adapter!r} first, or leave its patch in force",
            )
        check(place)
        _check_parameters(place, replacement)
        body = _check_bodies(adapter, target, place, version, untested)
        hold = hold_of(place)
        counters = hold.serve(replacement, lambda reason: on_decline(record, reason))
        record = PatchRecord(target, adapter, hold.function, hold.original, body, counters, hold)
        try:
            hold.install()
        except TypeError as error:  # how Python says that a class made in C takes no other attributes
            raise PatchRefused(
                target.path, str(error), "an owner that can be changed", "target what calls it"
            ) from error
        _live = (*_live, record)
        if not trampoline.knows_torch() and len(_live) == 1:
            _torch_watcher.when_ready("torch", _meet_torch)
        return record


def undo(record: PatchRecord) -> None:
    """Give a target back: the identical code object, or the identical attribute. A second time does nothing.

    Raises
    ------
    RestoreRefused
        Somebody patched it since. Their patch stays in force, and with it this record.
    """
    global _live
    with _lock:
        if record not in _live:
            return
        holder = record.hold.taken_by()
        if holder is not None:
            raise RestoreRefused(record.target.path, holder)
        record.hold.restore()
        _live = tuple(other for other in _live if other is not record)
        if not _live:
            _torch_watcher.close()


def record_of(fn: Any) -> PatchRecord | None:
    """Return the record of a patched callable, seen through methods and decorators; ``None`` if it is not patched."""
    function = innermost(fn)
    return next((record for record in _live if record.function is function), None)


def original(fn: Any) -> Any:
    """Return what runs the library's own code: for a patched callable its original, bound as ``fn`` is; else ``fn``.

    Decorators above a patched function are no part of its original.
    """
    record = record_of(fn)
    if record is None:
        return fn
    return MethodType(record.original, fn.__self__) if isinstance(fn, MethodType) else record.original


def _meet_torch(torch: ModuleType) -> None:
    """Let the seams that were made before torch was imported know when it traces."""
    trampoline.refresh()
    if trampoline.knows_torch():
        _torch_watcher.close()


def _check_parameters(place: Place, replacement: Callable[..., Any]) -> None:
    if isinstance(place.function, type) != isinstance(replacement, type):
        raise PatchRefused(
            place.path,
            f"the replacement {replacement!r} is {'a class' if isinstance(replacement, type) else 'no class'}",
            "a class takes a class's place, a function a function's",
            "correct the adapter",
        )
    mismatch = signature_mismatch(place.function, replacement)
    if mismatch:
        raise PatchRefused(
            place.path,
            f"its signature does not fit: {mismatch}",
            "the replacement takes the target's parameters, and more only with defaults",
            "look for a newer release of the adapter; LI_PLUGINS_UNTESTED does not help here",
        )


def _check_bodies(adapter: str, target: Target, place: Place, version: str, untested: bool) -> str:
    """Refuse unknown bodies of the target and of its helpers; return the target's, empty where there is no source."""
    unknown: list[tuple[str, Sequence[str]]] = []
    body, answer = _body(place.function)
    releases: dict[str, list[str]] = {}
    for release, known in target.bodies.items():
        releases.setdefault(known, []).append(release)
    if releases and body not in releases:
        described = [f"{known} ({', '.join(of)})" for known, of in releases.items()]
        unknown.append((f"its body in {version} {answer}", described))
    for path, known_helpers in target.also.items():
        helper_body, answer = _helper_body(path)
        if helper_body not in known_helpers:
            unknown.append((f"the body of its helper {path} in {version} {answer}", known_helpers))
    if unknown and not untested:
        found, known_ones = unknown[0]
        raise PatchRefused(
            target.path,
            found,
            f"known: {', '.join(known_ones)}",
            f"run `li-plugins fingerprint {adapter}`, test, add the body to the manifest; or set LI_PLUGINS_UNTESTED=1",
        )
    return body


def _body(function: Any) -> tuple[str, str]:
    """Return the fingerprint of what a function is when not patched, and what to say about it."""
    try:
        body = fingerprint(original(function))
    except BadInput as error:
        return "", f"cannot be read: {error.found}"
    return body, f"is {body}"


def _helper_body(path: str) -> tuple[str, str]:
    try:
        return _body(find(path).function)
    except PatchRefused as error:
        return "", f"is out of reach: {error.found}"
