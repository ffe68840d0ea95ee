"""The place that a target's path names: who owns it, what is there, and why it cannot be patched."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from li_plugins.errors import PatchRefused

_KINDS = {
    inspect.CO_GENERATOR: "a generator function",
    inspect.CO_COROUTINE: "a coroutine function",
    inspect.CO_ASYNC_GENERATOR: "an asynchronous generator function",
    inspect.CO_ITERABLE_COROUTINE: "a coroutine function",
}


class Place(NamedTuple):
    """Where a target is.

    ``held`` is what the owner's dictionary holds, a static or class method as such; ``function`` is what runs in the
    end, below those and below decorators that tell what they wrap.
    """

    path: str
    module: ModuleType
    owner: Any
    name: str
    held: Any
    function: Any

    @property
    def label(self) -> str:
        """The path with dots only, for people."""
        return self.path.replace(":", ".")


def find(path: str) -> Place:
    """Return the place of ``"module:qualified.name"``; raise ``PatchRefused`` when there is none.

    It reads dictionaries and never asks for attributes: what a class inherits belongs to its base, and a module's
    ``__getattr__`` would import more.
    """
    module_name, _, qualname = path.partition(":")
    module = sys.modules.get(module_name)
    if module is None:
        raise PatchRefused(path, f"{module_name} is not imported", "a module is patched once ready", "import it first")
    *owners, name = qualname.split(".")
    owner: Any = module
    for part in owners:
        owner = _own(path, owner, part)
        if not isinstance(owner, type):
            raise PatchRefused(path, f"{part!r} is {_kind(owner)}", "only classes own methods", "correct the manifest")
    held = _own(path, owner, name)
    return Place(path, module, owner, name, held, innermost(held))


def _own(path: str, owner: Any, name: str) -> Any:
    """Return what the owner's own dictionary holds under a name."""
    entries = vars(owner)
    if name in entries:
        return entries[name]
    for base in owner.__mro__[1:] if isinstance(owner, type) else ():
        if name in vars(base):
            raise PatchRefused(
                path,
                f"{owner.__qualname__} inherits {name!r} from {base.__module__}:{base.__qualname__}",
                "a method is patched where it is defined, for all heirs",
                f"name {base.__module__}:{base.__qualname__}.{name} in the manifest",
            )
    near = ", ".join(get_close_matches(name, entries, n=3)) or "nothing alike"
    raise PatchRefused(path, f"there is no {name!r}", f"found {near}", "correct the manifest, or its `versions`")


def layers(fn: Any) -> list[Any]:
    """Return a callable and all that it stands for: below methods, static and class methods, and decorators."""
    found = [fn]
    while not isinstance(fn, type):
        inner = getattr(fn, "__func__", None)
        fn = getattr(fn, "__wrapped__", None) if inner is None else inner
        if fn is None or any(fn is other for other in found):
            break
        found.append(fn)
    return found


def innermost(fn: Any) -> Any:
    """Return what runs in the end when ``fn`` is called, as far as decorators tell."""
    return layers(fn)[-1]


def check(place: Place) -> None:
    """Raise ``PatchRefused`` with the first reason why nothing can be patched here."""
    for found, known, remedy in _obstacles(place):
        raise PatchRefused(place.path, found, known, remedy)


def _obstacles(place: Place) -> Iterator[tuple[str, str, str]]:
    marks = [
        name
        for layer in layers(place.held)
        if not isinstance(layer, type)
        for name in getattr(layer, "__dict__", ())
        if name.startswith("_torchdynamo_")
    ]
    if marks:
        yield (
            f"it carries {marks[0]!r}: it is compiled, or marked for torch.compile",
            "what torch.compile made of it would not see the patch",
            "leave it, or target a function that it calls",
        )
    function = place.function
    if isinstance(function, FunctionType):
        yield from _code_obstacles(place, function)
    elif isinstance(function, type):
        if function.__module__.partition(".")[0] != place.module.__name__.partition(".")[0]:
            found = f"it is {function.__module__}:{function.__qualname__}"
            yield found, f"{place.module.__name__} does not define it", "somebody replaced it, or the manifest is wrong"
    elif not (callable(function) and inspect.isroutine(function)):
        yield f"it is {_kind(function)}", "functions, classes and C callables can be patched", "target what it calls"
    elif len(layers(place.held)) > 1 + isinstance(place.held, (staticmethod, classmethod)):
        yield (
            f"it decorates {_kind(function)}",
            "only Python functions are patched below decorators",
            "target what calls it",
        )


def _code_obstacles(place: Place, function: FunctionType) -> Iterator[tuple[str, str, str]]:
    code = function.__code__
    if not _is_at_home(code.co_filename, place.module):
        yield (
            f"its code is {function.__qualname__} in {code.co_filename}: somebody patched it already",
            f"the library's own is in {place.module.__file__}",
            "undo the other patch first, or leave it in force",
        )
    if code.co_freevars:
        names = ", ".join(code.co_freevars)
        yield f"it is a closure over {names}", "a closure's code cannot be swapped", "target a function that it calls"
    for flag, kind in _KINDS.items():
        if code.co_flags & flag:
            yield f"it is {kind}", "a function that returns its result is needed", "target a function that it calls"


def _is_at_home(filename: str, module: ModuleType) -> bool:
    """Return whether code of this file belongs to the module or to another one of its top package."""
    home = vars(module).get("__file__")
    if home is None:
        return True  # made by hand: there is nothing to compare with
    package = sys.modules.get(module.__name__.partition(".")[0], module)
    path = os.path.realpath(filename)
    folders = (os.path.join(os.path.realpath(folder), "") for folder in vars(package).get("__path__", ()))
    return path == os.path.realpath(home) or path.startswith(tuple(folders))


def _kind(found: Any) -> str:
    return f"an instance of {type(found).__module__}.{type(found).__qualname__}"
