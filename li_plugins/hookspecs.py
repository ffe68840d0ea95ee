"""The extension contract: every hook that a plugin may implement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from li_plugins.api import Adapter, Kernel, Target
    from li_plugins.host.config import Config
    from li_plugins.host.patch import PatchRecord

hookspec = HookspecMarker("li_plugins")


@hookspec
def li_plugins_adapters() -> Iterable[Adapter]:  # type: ignore[empty-body]
    """Return the adapters that this plugin offers.

    Called once per discovery. It must not import the library that it adapts.
    """


@hookspec
def li_plugins_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Return the kernels that this plugin offers; called at the first use of an operation."""


@hookspec(firstresult=True)
def li_plugins_rank_kernels(op: str, request: Any, kernels: Sequence[Kernel]) -> Sequence[Kernel] | None:
    """Reorder or drop the candidates for a request; runs once per plan, never per call. The first answer wins."""


@hookspec(historic=True)
def li_plugins_configured(config: Config) -> None:
    """Settings are final; replayed to plugins that register later."""


@hookspec
def li_plugins_patched(record: PatchRecord) -> None:
    """Called after a target was patched."""


@hookspec
def li_plugins_restored(record: PatchRecord) -> None:
    """Called after a target was given back."""


@hookspec
def li_plugins_declined(target: Target, reason: str) -> None:
    """Called the first time that a target declines for a reason."""
