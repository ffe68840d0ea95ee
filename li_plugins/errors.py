"""The errors that li-plugins raises: fields first, the message derived from them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LiPluginsError(Exception):
    """Base of everything that li-plugins raises on purpose."""


class UnknownAdapter(LiPluginsError, ValueError):
    """An adapter name that no installed plugin offers."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        self.nearest = next(iter(get_close_matches(name, self.known, n=1)), None)
        hint = f"did you mean {self.nearest!r}?" if self.nearest else "install the plugin that offers it."
        super().__init__(f"no adapter is called {name!r}; known: {', '.join(self.known) or 'none'}; {hint}")


class BadInput(LiPluginsError, ValueError):
    """An operation was called with arguments that it has no meaning for."""

    def __init__(self, asked: str, found: str, remedy: str) -> None:
        self.asked, self.found, self.remedy = asked, found, remedy
        super().__init__(f"{asked}; found {found}; {remedy}")


class PatchRefused(LiPluginsError):
    """A target was not patched; the original keeps running."""

    def __init__(self, target: str, found: str, known: str, remedy: str) -> None:
        self.target, self.found, self.known, self.remedy = target, found, known, remedy
        super().__init__(f"{target}: {found}; {known}; {remedy}")


class RestoreRefused(LiPluginsError):
    """An undo was refused because somebody else patched on top of it."""

    def __init__(self, target: str, holder: str) -> None:
        self.target, self.holder = target, holder
        super().__init__(
            f"{target}: {holder} patched it after li-plugins; undo that patch first, then call disable_all() again"
        )


class PluginBroken(LiPluginsError):
    """A plugin failed while it was loaded or asked for its adapters (raised in strict mode only)."""

    def __init__(self, plugin: str, reason: str) -> None:
        self.plugin, self.reason = plugin, reason
        super().__init__(f"plugin {plugin!r} failed: {reason}; uninstall it or ask its author")


class NoKernel(LiPluginsError, RuntimeError):
    """No kernel serves a request; each one's reason is in ``rejected``."""

    def __init__(self, op: str, rejected: Iterable[tuple[str, str]]) -> None:
        self.op = op
        self.rejected = tuple(rejected)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.rejected) or "none is registered"
        super().__init__(f"no kernel serves this {op} call: {reasons}")
