"""All that an author of an adapter or a kernel imports: manifests, answers and the hook marker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pluggy import HookimplMarker

__all__ = [
    "Adapter",
    "Decline",
    "Kernel",
    "Support",
    "Target",
    "carried",
    "carriers",
    "hookimpl",
    "kernel_providers",
    "kernel_rankers",
]

hookimpl = HookimplMarker("li_plugins")
"""Marks a function of a plugin module as the implementation of the hook of the same name."""


@dataclass(frozen=True, slots=True)
class Support:
    """A yes or a no with its reason; true when the answer is yes."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


class Decline:
    """What a replacement returns, before any work, to let the original run.

    Parameters
    ----------
    reason
        Why, in words for the user: ``"dtype torch.int8: MaxSim needs a floating dtype"``. It may depend on metadata
        only (device, dtype, rank, sizes, ``requires_grad``), never on values.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"Decline({self.reason!r})"


@dataclass(frozen=True, slots=True)
class Target:
    """One function of a library and what replaces it; strings only, resolved when the library's module is ready.

    Parameters
    ----------
    path
        ``"module:qualified.name"`` in the module that *defines* it.
    replacement
        ``"module:function"``. Its leading parameters are the target's, by name and kind; extra ones have defaults. A
        keyword-only ``original=None`` among those extra ones is always given the library's own function: for what is
        done around it.
    bodies
        Known bodies: release (for people) to fingerprint (for the gate), as ``li-plugins fingerprint`` prints them.
    explain
        ``"module:function"`` with the same parameters that returns a ``Decline`` or a printable plan without
        computing anything; used by ``li_plugins.explain``. Optional.
    versions
        PEP 440 specifier of the library's releases that have this target, inside the adapter's range; empty: all.
    also
        ``"module:qualified.name"`` of helpers whose bodies matter to the replacement, to known fingerprints.
    """

    path: str
    replacement: str
    bodies: Mapping[str, str] = field(default_factory=dict)
    explain: str = ""
    versions: str = ""
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label in ("path", "replacement", "explain"):
            value = getattr(self, label)
            module, colon, name = value.partition(":")
            well_formed = bool(colon and module and name) and all(
                part.isidentifier() for part in (*module.split("."), *name.split("."))
            )
            if not well_formed and (value or label != "explain"):
                raise ValueError(f"Target.{label} must read 'module:name'; found {value!r}; correct the manifest")

    @property
    def module(self) -> str:
        """Name of the module whose import makes this target patchable."""
        return self.path.partition(":")[0]

    @property
    def qualname(self) -> str:
        """Qualified name of the target inside its module."""
        return self.path.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a plugin offers for one library.

    Parameters
    ----------
    name
        The name that ``enable("name")`` and ``LI_PLUGINS=name`` use.
    requires
        PEP 508 requirement with the tested range: ``"pylate>=1.3.1,<1.7"``.
    targets
        What is patched, in the order in which it is patched.
    summary
        One line for the docs: ``"PyLate: scores and losses through MaxSim"``.
    since
        The library's first release that has what is patched; an older one counts as absent, without a warning. Empty:
        what is older than ``requires`` is untested.
    opt_in
        Only whoever names the adapter gets it: ``enable_all()`` and ``LI_PLUGINS=1`` pass it by. For what changes the
        library's answers on purpose, such as mended bugs.
    """

    name: str
    requires: str
    targets: Sequence[Target]
    summary: str = ""
    since: str = ""
    opt_in: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of an operation, found by the registry and ranked by ``priority``.

    Parameters
    ----------
    op
        Name of the operation: ``"maxsim"``.
    name
        Unique name of the kernel, shown by ``explain`` and accepted by ``LI_PLUGINS_BACKEND``.
    load
        ``"module:attribute"`` of an object with ``supports``, ``forward`` and ``backward`` (see docs/add-a-kernel.md).
    devices
        Device types that it runs on.
    dtypes
        Names of the input dtypes that it serves: ``("float16", "bfloat16", "float32")``.
    arch
        Lowest and highest CUDA compute capability, times ten: ``(80, 120)``; ``None`` means any.
    grad
        Whether it has a backward.
    priority
        Higher runs first.
    """

    op: str
    name: str
    load: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    arch: tuple[int, int] | None = None
    grad: bool = True
    priority: int = 0


kernel_providers: list[Callable[[], Iterable[Kernel]]] = []
"""Callables that return kernels of plugins; the host fills it, the registry of the operations reads it."""

kernel_rankers: list[Callable[[str, Any, Sequence[Kernel]], Sequence[Kernel] | None]] = []
"""Callables ``(op, request, kernels)`` that reorder or drop candidates or return ``None`` (no opinion); filled by the
host with the plugins' ``li_plugins_rank_kernels``, asked by the dispatcher once per plan. The first answer wins."""

carriers: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = []
"""Callables that let a function take what is enabled here to the process that it is sent to; filled by the host."""


def carried(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that a library is about to send to a spawned process, so that it arrives with the adapters.

    Called in this process it is the same. Pickled, it enables there what is enabled here, and arrives as itself.
    """
    for carry in carriers:
        function = carry(function)
    return function
