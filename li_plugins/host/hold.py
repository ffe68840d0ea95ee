"""The ways to hold a place: exchange a function's code, or the attribute of the owner, and back."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from li_plugins.host.fingerprint import parameters
from li_plugins.host.place import Place, innermost
from li_plugins.host.trampoline import Counters, Seam, trampoline


class Hold(ABC):
    """A place, what it is by itself and what it becomes.

    ``function`` is the callable that runs the replacement once installed, ``original`` one that never does.
    """

    function: Any
    original: Any

    def __init__(self, place: Place) -> None:
        self.place = place

    def fits(self, place: Place) -> bool:
        """Return whether the same thing is there that this hold was made for."""
        return self.place.held is place.held and self.place.function is place.function

    @abstractmethod
    def serve(self, replacement: Callable[..., Any], on_decline: Callable[[str], None]) -> Counters:
        """Say what runs once installed; return the counters of its calls."""

    @abstractmethod
    def install(self) -> None:
        """Let calls run the replacement."""

    @abstractmethod
    def taken_by(self) -> str | None:
        """Return who changed the place since ``install``, ``None`` when nobody did."""

    @abstractmethod
    def restore(self) -> None:
        """Make the place what it was."""


class _InPlace(Hold):
    """A Python function: the same object with other code, so that whoever holds it sees the change."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.function: FunctionType = place.function
        self.original = _twin(place.function)
        self._seam = Seam()
        self._theirs = place.function.__code__
        self._ours = trampoline(self._theirs, self._seam, place.label)

    def fits(self, place: Place) -> bool:
        return super().fits(place) and place.function.__code__ is self._theirs

    def serve(self, replacement: Callable[..., Any], on_decline: Callable[[str], None]) -> Counters:
        return self._seam.serve(replacement, self.original, on_decline)

    def install(self) -> None:
        self._seam.show_in(self.function.__globals__)
        self.function.__code__ = self._ours

    def taken_by(self) -> str | None:
        code = self.function.__code__
        return None if code is self._ours else _describe(code)

    def restore(self) -> None:
        self.function.__code__ = self._theirs
        self._seam.hide_from(self.function.__globals__)


class _Attribute(Hold):
    """A class or a C callable: the owner's attribute holds something else; who took it by value keeps the original."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.original = place.function
        self._installed: Any = None

    def install(self) -> None:
        setattr(self.place.owner, self.place.name, self._installed)

    def taken_by(self) -> str | None:
        found = vars(self.place.owner).get(self.place.name)
        if found is self._installed:
            return None
        code = getattr(innermost(found), "__code__", None)
        return repr(found) if code is None else _describe(code)

    def restore(self) -> None:
        setattr(self.place.owner, self.place.name, self.place.held)


class _Class(_Attribute):
    """A class, replaced by a class; nothing stands between it and its callers, so nothing is counted."""

    def serve(self, replacement: Callable[..., Any], on_decline: Callable[[str], None]) -> Counters:
        self.function = self._installed = replacement
        return Counters()


class _CCallable(_Attribute):
    """A C callable, replaced by a Python function that takes any arguments and passes as it."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._seam = Seam()
        self._globals = vars(place.module)
        code = trampoline(_takes_anything.__code__, self._seam, place.label)
        self.function = FunctionType(code, self._globals, place.name)
        self.function.__module__, _, self.function.__qualname__ = place.path.partition(":")  # pickle finds it there
        self.function.__doc__ = place.function.__doc__
        signature = parameters(place.function)
        if signature is not None:
            self.function.__signature__ = inspect.Signature(signature)
        self._installed = self.function
        if isinstance(place.held, classmethod):
            self._installed = classmethod(self.function)
        elif isinstance(place.owner, type) and not _binds(place.held):
            self._installed = staticmethod(self.function)

    def serve(self, replacement: Callable[..., Any], on_decline: Callable[[str], None]) -> Counters:
        return self._seam.serve(replacement, self.original, on_decline)

    def install(self) -> None:
        super().install()
        self._seam.show_in(self._globals)

    def restore(self) -> None:
        super().restore()
        self._seam.hide_from(self._globals)


def _binds(held: Any) -> bool:
    """Return whether what a class holds gets the instance as its first argument, as Python functions do."""
    return hasattr(held, "__get__") and not isinstance(held, staticmethod)


def _describe(code: CodeType) -> str:
    return f"{getattr(code, 'co_qualname', code.co_name)} in {code.co_filename}"


def _takes_anything(*args: Any, **kwargs: Any) -> None: ...


def _twin(function: FunctionType) -> FunctionType:
    """Return another function with the same code, defaults, attributes and looks."""
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    twin.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(twin, function)
    del twin.__wrapped__  # type: ignore[attr-defined]  # it stands beside the function, not around it
    return twin


# Kept after an undo. A graph of torch.compile is guarded by the identity of the code that it was traced from: it is
# found again when the next patch has the same trampoline; with a fresh one each time, the recompile limit comes soon.
_holds: dict[tuple[int, str], Hold] = {}


def hold_of(place: Place) -> Hold:
    """Return the hold of a place, the same as ever while what is there stays the same."""
    key = (id(place.owner), place.name)
    hold = _holds.get(key)
    if hold is None or not hold.fits(place):
        if isinstance(place.function, FunctionType):
            hold = _InPlace(place)
        else:
            hold = _Class(place) if isinstance(place.function, type) else _CCallable(place)
        _holds[key] = hold
    return hold
