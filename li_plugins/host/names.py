"""Names of functions as manifests write them, ``"module:qualified.name"``, and what they name."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(path: str) -> Any:
    """Import a module and return what ``path`` names in it.

    Raises
    ------
    ImportError
        The module cannot be imported.
    AttributeError
        The module has no such name.
    """
    module, _, qualname = path.partition(":")
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def dotted(path: str) -> str:
    """Return ``"module:qualified.name"`` as people write it, ``"module.qualified.name"``."""
    return path.replace(":", ".")
