"""Which kernel runs: one plan for each kind of request, with the reason of every other kernel."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from li_plugins import api
from li_plugins.api import Kernel, Support
from li_plugins.errors import NoKernel
from li_plugins.ops import _compat, recipes, registry
from li_plugins.ops.registry import Implementation

logger = logging.getLogger("li_plugins.ops")

Phase = Literal["scores", "winners", "backward"]
Result = TypeVar("Result")


class Request(NamedTuple):
    """What may decide between kernels: a plan serves every call with the same request.

    ``Kernel.supports`` sees the problem of the first call; its answer has to follow from these fields.
    """

    op: str
    phase: Phase
    """``scores`` alone, scores and ``winners``, or ``backward``."""
    device: torch.device
    dtype: torch.dtype
    document_dtype: torch.dtype
    layout: int
    width: int
    """``d``, the elements of one embedding."""
    rule: str
    query_weights: torch.dtype | None
    document_mask: torch.dtype | None
    document_lengths: bool
    floor: bool
    large: bool
    """Whether an input, the scores or the winners have 2**31 elements or more."""

    @classmethod
    def of(cls, op: str, phase: Phase, problem: Any) -> Request:
        """Describe a call of ``op``."""
        queries, documents = problem.queries, problem.documents
        weights, mask = problem.query_weights, problem.document_mask
        scores = 1
        for size in problem.scores_shape:
            scores *= size
        elements = max(queries.numel(), documents.numel(), scores * max(problem.max_query_length, 1))
        return cls(
            op,
            phase,
            queries.device,
            queries.dtype,
            documents.dtype,
            problem.layout,
            queries.shape[-1],
            problem.rule.name,
            None if weights is None else weights.dtype,
            None if mask is None else mask.dtype,
            problem.document_lengths is not None,
            problem.floor is not None,
            elements >= 2**31,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The kernel for a request and why the others do not run; prints as ``explain`` shows it."""

    request: Request
    kernel: Kernel
    implementation: Implementation
    rejected: tuple[tuple[str, str], ...] = ()
    calls: list[int] = field(default_factory=lambda: [0])
    details: tuple[str, ...] = ()
    """Lines on one call: its shapes, and how the kernel serves them."""

    def __str__(self) -> str:
        request = self.request
        what = f"{request.op} ({request.phase}) {request.dtype} d={request.width} {request.rule} on {request.device}"
        lines = [*self.details, *(f"not {name}: {why}" for name, why in self.rejected)]
        return "\n  ".join([f"{what}: {self.kernel.name}", *lines])

    def of(self, problem: Any) -> Plan:
        """Return this plan with what there is to say of one call."""
        return replace(self, details=(_shapes(problem), *_described(self, problem)))


_lock = threading.RLock()
_plans: dict[Request, Plan] = {}
_quarantined: dict[tuple[Request, str], str] = {}
_tallies: dict[tuple[str, str], list[int]] = {}
_sources: tuple[object, ...] = ()


def plan(op: str, problem: Any, phase: Phase = "scores") -> Plan:
    """Return the plan for a call; made at the first call of its kind, then looked up.

    Raises
    ------
    NoKernel
        When no kernel serves it, with each one's reason.
    """
    keep_up()
    request = Request.of(op, phase, problem)
    found = _plans.get(request)
    if found is None:
        with _lock:
            found = _plans.get(request) or _plans.setdefault(request, _make(request, problem))
    return found


def keep_up() -> None:
    """Forget what was planned before a plugin came or went."""
    if _sources != (*api.kernel_providers, *api.kernel_rankers):
        _read_sources()


def explain(op: str, problem: Any, phase: Phase = "scores") -> Plan:
    """Return the plan for a call with its shapes, and how the kernel would serve them; nothing is computed."""
    return plan(op, problem, phase).of(problem)


def supports(op: str, problem: Any, phase: Phase = "scores") -> Support:
    """Say whether a kernel serves the call, without running it.

    While torch.compile traces, the answer is yes: the plan is made when the graph runs, for the device that it meets.
    """
    if _compat.torch_is_compiling():
        return Support(True, "the kernel is chosen when the graph runs")
    try:
        return Support(True, plan(op, problem, phase).kernel.name)
    except NoKernel as refusal:
        return Support(False, str(refusal))


def run(op: str, problem: Any, phase: Phase, call: Callable[[Implementation], Result]) -> Result:
    """Run ``call`` with the planned kernel; one that cannot be compiled is quarantined and the next one runs.

    Autocast had its say in what the problem is; how it is multiplied is the kernel's to say.
    """
    while True:
        chosen = plan(op, problem, phase)
        try:
            with _compat.without_autocast(chosen.request.device):
                result = call(chosen.implementation)
        except Exception as error:
            # only a kernel that could not be built is ours to handle: nothing ran yet, the next one starts clean
            if not _compat.is_compile_failure(error) or _flag("LI_PLUGINS_STRICT"):
                raise
            _quarantine(chosen, error)
            continue
        chosen.calls[0] += 1
        recipes.counted(chosen.calls)
        return result


def counters() -> Counter[tuple[str, str]]:
    """Return how often each kernel ran: ``{("maxsim", "blocked"): 3, ("maxsim backward", "blocked"): 1}``."""
    return Counter({key: tally[0] for key, tally in _tallies.items() if tally[0]})


def quarantined() -> dict[tuple[str, str], str]:
    """Return why kernels are quarantined: ``{("maxsim", "triton"): "CompilationError: ..."}``; the host shows it."""
    return {(request.op, kernel): reason for (request, kernel), reason in list(_quarantined.items())}


def reset() -> None:
    """Forget plans, quarantines and counters, and read the environment again."""
    with _lock:
        _forget_plans()
        _quarantined.clear()
        for tally in _tallies.values():
            tally[0] = 0


def _read_sources() -> None:
    global _sources
    with _lock:
        _forget_plans()
        _sources = (*api.kernel_providers, *api.kernel_rankers)


def _forget_plans() -> None:
    _plans.clear()
    recipes.forget()


def _make(request: Request, problem: Any) -> Plan:
    candidates = _ranked(request, registry.kernels(request.op))
    rejected: list[tuple[str, str]] = []
    chosen: tuple[Kernel, Implementation] | None = None
    for kernel in candidates:
        reason = _misfit(kernel, request)
        if not reason and chosen is not None:
            reason = f"ranks after {chosen[0].name}"
        if not reason:
            found = _loaded(kernel)
            if isinstance(found, str):
                reason = found
            else:
                support = found.supports(problem)
                reason = "" if support else support.reason or "it gives no reason"
                if support:
                    chosen = kernel, found
        if reason:
            rejected.append((kernel.name, reason))
    if chosen is None:
        raise NoKernel(request.op, rejected)
    label = f"{request.op} backward" if request.phase == "backward" else request.op
    tally = _tallies.setdefault((label, chosen[0].name), [0])
    plan = Plan(request, *chosen, tuple(rejected), tally)
    _report_preference(plan, candidates)
    if logger.isEnabledFor(logging.INFO):
        logger.info("li_plugins: %s", plan.of(problem))
    return plan


def _shapes(problem: Any) -> str:
    """Return the layout and the shapes of a call, and the longest query and document of a ragged one."""
    inputs = ((item.name, getattr(problem, item.name)) for item in fields(problem))
    line = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs if isinstance(value, torch.Tensor))
    line += f" -> {tuple(problem.scores_shape)}"
    if getattr(problem, "query_offsets", None) is not None:
        line += f", up to {problem.max_query_length} x {problem.max_document_length} tokens"
    layout = getattr(problem.layout, "name", "")
    return f"{layout}: {line}" if layout else line


def _described(chosen: Plan, problem: Any) -> tuple[str, ...]:
    """Return what the kernel says of itself, if it says anything; what is said for people must not stop a call."""
    describe = getattr(chosen.implementation, "describe", None)
    if describe is None:
        return ()
    try:
        return tuple(describe(problem, chosen.request.phase))
    except Exception as error:  # a stranger's code; the call itself would show what matters
        return (f"it cannot describe itself: {type(error).__name__}: {error}",)


def _ranked(request: Request, kernels: Sequence[Kernel]) -> list[Kernel]:
    for ranker in api.kernel_rankers:
        answer = ranker(request.op, request, tuple(kernels))
        if answer is not None:
            kernels = list(answer)
            break
    preferred = os.environ.get("LI_PLUGINS_BACKEND", "").strip()
    return sorted(kernels, key=lambda kernel: kernel.name != preferred)


def _misfit(kernel: Kernel, request: Request) -> str:
    """Return why the kernel's row of data rules it out, or nothing."""
    if (request, kernel.name) in _quarantined:
        return f"quarantined: {_quarantined[request, kernel.name]}"
    if request.device.type not in kernel.devices:
        return f"runs on {', '.join(kernel.devices)}, not on {request.device.type}"
    dtype = str(request.dtype).removeprefix("torch.")
    if dtype not in kernel.dtypes:
        return f"takes {', '.join(kernel.dtypes)}, not {dtype}"
    if request.phase != "scores" and not kernel.grad:
        return "has no backward"
    if kernel.arch is not None and request.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(request.device)
        if not kernel.arch[0] <= major * 10 + minor <= kernel.arch[1]:
            return f"needs compute capability {kernel.arch[0]} to {kernel.arch[1]}; found {major}{minor}"
    return ""


def _loaded(kernel: Kernel) -> Implementation | str:
    """Return what the kernel's row names, or why it cannot be had."""
    try:
        return registry.load(kernel)
    except ImportError as error:  # triton is optional; so is whatever a plugin's kernel needs
        return f"cannot be imported: {error}"
    except Exception as error:  # a broken kernel module must not take the others away; strict mode shows it whole
        if _flag("LI_PLUGINS_STRICT"):
            raise
        logger.exception("li_plugins: kernel %r cannot be loaded from %r", kernel.name, kernel.load)
        return f"cannot be loaded: {type(error).__name__}: {error}"


def _quarantine(failed: Plan, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".strip()
    logger.error(
        "li_plugins: kernel %r cannot be compiled for %s; the next one runs from now on. %s",
        failed.kernel.name,
        failed.request,
        reason,
    )
    with _lock:
        _quarantined[failed.request, failed.kernel.name] = reason.splitlines()[0]
        _plans.pop(failed.request, None)
    recipes.forget()


def _report_preference(chosen: Plan, candidates: Sequence[Kernel]) -> None:
    preferred = os.environ.get("LI_PLUGINS_BACKEND", "").strip()
    if not preferred or chosen.kernel.name == preferred:
        return
    known = ", ".join(kernel.name for kernel in candidates)
    why = dict(chosen.rejected).get(preferred, f"{chosen.request.op} has no such kernel; known: {known}")
    warnings.warn(
        f"LI_PLUGINS_BACKEND={preferred} cannot serve this call ({why}); {chosen.kernel.name} does",
        RuntimeWarning,
        stacklevel=2,
    )


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")
