"""What a call would do: the target's adapter is asked, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from li_plugins.api import Target
from li_plugins.host import patch
from li_plugins.host.config import Config
from li_plugins.host.ledger import Desk, Seat
from li_plugins.host.names import dotted, load
from li_plugins.host.place import innermost
from li_plugins.host.report import Explanation, State
from li_plugins.host.session import SUSPENDED, SWITCHED_OFF, Session


def explain(session: Session, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
    """Explain what ``fn(*args, **kwargs)`` would run and why; see ``li_plugins.explain``."""
    function, args, kwargs = _reach(fn, args, kwargs)
    record = patch.record_of(function)
    desks = session.desks()
    for seat in (seat for desk in desks for seat in desk.seats):
        if record is not None and record in seat.records:
            answer = _ask(seat, args, kwargs) if seat.target.explain and (args or kwargs) else None
            return _explanation(seat.desk, seat.target, "patched", answer=answer)
    function = innermost(function)
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    candidates = [(desk, target) for desk in desks for target in desk.adapter.targets if dotted(target.path) == name]
    if not candidates:
        return Explanation(name, reason="no adapter names this function")
    config = Config.read()
    for desk, target in candidates:
        closed = None if desk.busy else desk.closed(config)
        if closed is not None:
            return _explanation(desk, target, *closed)
        for seat in (seat for seat in desk.seats if seat.target is target):
            if seat.state == "patched":
                return _explanation(desk, target, "off", "another function of this name is patched; was it reloaded?")
            reason = seat.reason
            if seat.state == "off" and config.switch == "off":
                reason = SWITCHED_OFF
            elif seat.state == "armed" and session.is_suspended:
                reason = SUSPENDED
            return _explanation(desk, target, seat.state, reason)
    desk, target = candidates[0]
    return _explanation(desk, target, "out-of-range", f"no target in {desk.adapter.name} {desk.release.version}")


def _explanation(desk: Desk, target: Target, state: State, reason: str = "", answer: Any = None) -> Explanation:
    return Explanation(dotted(target.path), state, reason, desk.adapter.name, dotted(target.replacement), answer)


def _ask(seat: Seat, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return load(seat.target.explain)(*args, **kwargs)


def _reach(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Follow partials, bound methods and callable objects down to the function that a call would run."""
    while not isinstance(fn, FunctionType):
        if isinstance(fn, partial):
            fn, args, kwargs = fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
        elif isinstance(fn, MethodType):
            fn, args = fn.__func__, (fn.__self__, *args)
        elif not isinstance(fn, type) and isinstance(type(fn).__call__, FunctionType):
            fn, args = type(fn).__call__, (fn, *args)
        else:  # a class, or something written in C
            break
    return fn, args, kwargs
