"""The bodies of a target: those that an adapter knows, and the one in the installed files, read without importing."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec, resolve_name
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType

from li_plugins.api import Target
from li_plugins.errors import BadInput
from li_plugins.host.fingerprint import fingerprint


def known_bodies(target: Target) -> dict[str, dict[str, str]]:
    """Return what an adapter knows: by path of target and helpers, fingerprints and the releases that have them.

    A helper's releases are not known; the text is empty then.
    """
    own: dict[str, str] = {}
    for release, digits in target.bodies.items():
        own[digits] = f"{own[digits]}, {release}" if digits in own else release
    return {target.path: own, **{path: dict.fromkeys(bodies, "") for path, bodies in target.also.items()}}


def describe(known: Mapping[str, str]) -> str:
    """Return fingerprints and their releases in words."""
    return ", ".join(f"{digits} ({releases})" if releases else digits for digits, releases in known.items()) or "none"


def installed_body(path: str) -> str | None:
    """Return the fingerprint of a function in the installed files, or ``None`` when only an import can tell.

    That is so for what is neither written as one ``def`` in the ``.py`` file of its module nor imported there, at the
    top level and by name, from a module where it is.

    Parameters
    ----------
    path
        ``"module:qualified.name"``.
    """
    for _ in range(10):  # re-exports of re-exports; a circle ends too
        module, _, qualname = path.partition(":")
        file = _source_file(module)
        if file is None:
            return None
        try:
            tree = ast.parse(file.read_bytes())
            found = list(_find(compile(tree, str(file), "exec", dont_inherit=True), qualname.split(".")))
            # a name that is defined twice, as in two branches, is not told apart by its text
            if found:
                return fingerprint(found[0]) if len(found) == 1 else None
        except (OSError, SyntaxError, ValueError, BadInput):  # unreadable, or not Python of this interpreter
            return None
        is_package = file.name == "__init__.py"
        source = _imported_from(tree, qualname, package=module if is_package else module.rpartition(".")[0])
        if source is None:
            return None
        path = source
    return None


def _imported_from(tree: ast.Module, name: str, package: str) -> str | None:
    """Return the path of what a module imports under a name by ``from ... import``, ``None`` if it does not."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{resolve_name('.' * node.level + (node.module or ''), package)}:{alias.name}"
    return None


def _source_file(module: str) -> Path | None:
    """Find a module's file as an import would, but import none of its parents."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a module in sys.modules without a spec
        return None
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _find(code: CodeType, names: list[str]) -> Iterator[CodeType]:
    """Yield the functions of that qualified name among the constants of a module or class.

    Functions are optimized code; the body of a class, which is code too, is not.
    """
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and constant.co_name == names[0]:
            is_function = bool(constant.co_flags & CO_OPTIMIZED)
            if len(names) == 1 and is_function:
                yield constant
            elif len(names) > 1 and not is_function:
                yield from _find(constant, names[1:])
