"""Fused late-interaction kernels behind the libraries that you already use.

>>> import li_plugins
>>> li_plugins.enable_all()         # doctest: +SKIP
>>> print(li_plugins.status())      # doctest: +SKIP
>>> li_plugins.disable_all()        # doctest: +SKIP
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` has it, which alone would cost more than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import _GeneratorContextManager as ContextManager  # the one that is a decorator too
    from typing import Any, TypeVar

    from li_plugins.host.report import Explanation, Status

    F = TypeVar("F", bound=Callable[..., Any])
    __version__: str

__all__ = [
    "__version__",
    "disable_all",
    "enable",
    "enable_all",
    "explain",
    "original",
    "status",
    "suspended",
]


def enable_all(*, strict: bool | None = None, propagate: bool = False) -> Status:
    """Patch every library that has an adapter and is installed in a tested release.

    What is imported already is patched now, what is being imported when it is ready, what comes later when it comes.
    Nothing is imported for you. Calling it again changes nothing. ``LI_PLUGINS=0`` in the environment wins over it.
    An opt-in adapter, ``colbert-compat``, is for ``enable`` alone.

    Parameters
    ----------
    strict
        Raise the first failure, after everything else was done; ``LI_PLUGINS_STRICT`` by default. Otherwise failures
        are logged once and named in ``status()``.
    propagate
        Also set ``LI_PLUGINS`` in this process's environment, for spawned children; ``disable_all`` takes it back.

    Returns
    -------
    Status
        Prints as a table.

    Raises
    ------
    PatchRefused, PluginBroken, BadInput
        In strict mode: a target was refused, a plugin failed, a variable has a value without meaning.
    """
    from li_plugins.host.session import SESSION

    return SESSION.enable(strict=strict, propagate=propagate)


def enable(*names: str, strict: bool | None = None, propagate: bool = False) -> Status:
    """Patch the libraries of the named adapters: ``enable("pylate")``; otherwise as ``enable_all``.

    Raises
    ------
    UnknownAdapter
        No installed plugin offers an adapter of that name; nothing was changed.
    """
    from li_plugins.host.session import SESSION

    return SESSION.enable(names, strict=strict, propagate=propagate)


def disable_all() -> None:
    """Give every library back the very functions that it had.

    Raises
    ------
    RestoreRefused
        Somebody patched one of them after us. All the others were given back; call again when that patch is undone.
    """
    from li_plugins.host.session import SESSION

    SESSION.disable()


def suspended() -> ContextManager[None]:
    """Run the originals: ``with suspended(): ...``, or ``@suspended()`` on a function; for the whole process.

    Really unpatches, and patches again at the end what was enabled.

    Raises
    ------
    RestoreRefused
        Somebody patched a target after us, so that the originals cannot be given back.
    """
    from li_plugins.host.session import SESSION

    return SESSION.suspended()


def status() -> Status:
    """Return what is patched, what is not, and why; prints as a table."""
    from li_plugins.host.session import SESSION

    return SESSION.status()


def explain(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Tell what ``fn(*args, **kwargs)`` would run, and why, without running it.

    Names the kernel and why the others were rejected, the reason of a decline, or why ``fn`` is not patched.
    """
    from li_plugins.host.explain import explain
    from li_plugins.host.session import SESSION

    return explain(SESSION, fn, args, kwargs)


def original(fn: F, /) -> F:
    """Return the library's own function behind a patched one, callable beside it; ``fn`` itself when not patched."""
    from li_plugins.host.patch import original

    found: F = original(fn)
    return found


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("li-plugins")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
