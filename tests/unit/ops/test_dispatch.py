"""Which kernel runs, why the others do not, and what happens when one cannot be built."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch

from li_plugins import api
from li_plugins.api import Kernel, Support
from li_plugins.errors import NoKernel
from li_plugins.ops import _compat, dispatch, explain_maxsim, explain_maxsim_packed, maxsim, registry, supports_maxsim
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim import contract, cpu
from li_plugins.ops.maxsim.problem import Problem

QUERIES, DOCUMENTS = torch.ones(2, 3, 4), torch.ones(5, 6, 4)


class Strange(cpu.Blocked):
    """A stranger's kernel: counts its calls, and fails when told to."""

    support = Support(True)
    error: Exception | None = None

    def __init__(self) -> None:
        self.calls = 0

    def supports(self, problem: Any) -> Support:
        return self.support

    def forward(self, problem: Any, want_winners: bool) -> Any:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return super().forward(problem, want_winners)

    def backward(self, *arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        return super().backward(*arguments)


def row(name: str = "strange", **changes: Any) -> Kernel:
    fields = {
        "op": "maxsim",
        "name": name,
        "load": f"strange_kernels:{name.upper()}",
        "devices": ("cpu",),
        "dtypes": ("float32",),
        "priority": 50,
        **changes,
    }
    return Kernel(**fields)


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Strange:
    """A kernel of a plugin that ranks above the built-in ones of the CPU."""
    module = ModuleType("strange_kernels")
    module.STRANGE = Strange()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strange_kernels", module)
    api.kernel_providers.append(lambda: [row()])
    return module.STRANGE  # type: ignore[attr-defined]


@pytest.fixture
def triton_errors(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """A class that looks as triton's CompilationError does."""
    monkeypatch.setitem(sys.modules, "triton", sys.modules.get("triton") or ModuleType("triton"))
    return type("CompilationError", (Exception,), {"__module__": "triton.compiler.errors"})


def problem() -> Problem:
    return contract.dense(QUERIES, DOCUMENTS)


def served() -> dict[tuple[str, str], int]:
    return dict(dispatch.counters())


def test_the_highest_priority_that_fits_runs(strange: Strange) -> None:
    maxsim(QUERIES, DOCUMENTS)
    assert strange.calls == 1
    maxsim(QUERIES.double(), DOCUMENTS.double())
    assert strange.calls == 1
    assert served() == {("maxsim", "strange"): 1, ("maxsim", "blocked"): 1}


def test_counters_tell_forward_and_backward_apart() -> None:
    maxsim(QUERIES.clone().requires_grad_(), DOCUMENTS).sum().backward()
    maxsim(QUERIES, DOCUMENTS)
    assert served() == {("maxsim", "blocked"): 2, ("maxsim backward", "blocked"): 1}


def test_a_plan_prints_the_kernel_and_why_others_do_not_run(strange: Strange) -> None:
    text = str(explain_maxsim(QUERIES.double(), DOCUMENTS.double()))
    assert "maxsim (scores) torch.float64 d=4 NONE on cpu: blocked" in text
    assert "not triton: runs on cuda, not on cpu" in text
    assert "not strange: takes float32, not float64" in text
    assert "not reference: ranks after blocked" in text
    assert strange.calls == 0


def test_a_log_at_info_says_of_each_new_kind_of_call_what_served_it(
    strange: Strange, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    describe = lambda self, problem, phase: (f"three words on {phase}",)  # noqa: E731
    monkeypatch.setattr(Strange, "describe", describe, raising=False)
    caplog.set_level(logging.INFO, "li_plugins.ops")
    for _ in range(2):
        maxsim(QUERIES, DOCUMENTS, document_mask=torch.ones(5, 6, dtype=torch.bool), mask_rule=MaskRule.EXCLUDE)
    (record,) = caplog.records
    assert record.getMessage().splitlines() == [
        "li_plugins: maxsim (scores) torch.float32 d=4 EXCLUDE on cpu: strange",
        "  CROSS: queries (2, 3, 4), documents (5, 6, 4), document_mask (5, 6) -> (2, 5)",
        "  three words on scores",
        "  not triton: runs on cuda, not on cpu",
        "  not blocked: ranks after strange",
        "  not reference: ranks after strange",
    ]
    maxsim(QUERIES.clone().requires_grad_(), DOCUMENTS).sum().backward()
    assert [record.getMessage().split()[2] for record in caplog.records[1:]] == ["(winners)", "(backward)"]


def test_without_a_log_at_info_nothing_is_described(strange: Strange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Strange, "describe", lambda *_: pytest.fail("described"), raising=False)
    monkeypatch.setattr(logging.getLogger("li_plugins.ops"), "level", logging.WARNING)
    maxsim(QUERIES, DOCUMENTS)


def test_a_description_that_fails_stops_no_call(strange: Strange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Strange, "describe", lambda *_: 1 / 0, raising=False)
    assert "it cannot describe itself: ZeroDivisionError: " in str(explain_maxsim(QUERIES, DOCUMENTS))


def test_explain_of_packed_lists_and_of_gradients() -> None:
    offsets = torch.tensor([0, 3])
    plan = explain_maxsim_packed(torch.ones(3, 4).requires_grad_(), torch.ones(3, 4), offsets, offsets)
    assert plan.kernel.name == "blocked"
    assert plan.request.phase == "winners"
    assert "PACKED_CROSS: queries (3, 4), documents (3, 4), query_offsets (2,), " in str(plan)
    assert " -> (1, 1), up to 3 x 3 tokens" in str(plan)


def test_supports_is_asked_once_per_kind_of_request(strange: Strange, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Strange, "supports", lambda self, problem: asked.append(problem) or Support(False, "not today"))
    for _ in range(3):
        maxsim(QUERIES, DOCUMENTS)
    assert len(asked) == 1
    assert dict(explain_maxsim(QUERIES, DOCUMENTS).rejected)["strange"] == "not today"
    maxsim(torch.ones(2, 3, 5), torch.ones(5, 6, 5))
    assert len(asked) == 2


def test_a_kernel_without_a_backward_serves_scores_only(strange: Strange, monkeypatch: pytest.MonkeyPatch) -> None:
    api.kernel_providers[:] = [lambda: [row(grad=False)]]
    maxsim(QUERIES, DOCUMENTS)
    maxsim(QUERIES.clone().requires_grad_(), DOCUMENTS).sum().backward()
    assert strange.calls == 1
    assert served()["maxsim backward", "blocked"] == 1


def test_no_kernel_is_an_error_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUILTIN", (row("gpu", devices=("cuda",)), row("half", dtypes=("float16",))))
    with pytest.raises(NoKernel, match="gpu: runs on cuda, not on cpu; half: takes float16, not float32"):
        maxsim(QUERIES, DOCUMENTS)
    assert not supports_maxsim(QUERIES, DOCUMENTS)


def test_the_environment_prefers_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LI_PLUGINS_BACKEND", "reference")
    maxsim(QUERIES, DOCUMENTS)
    assert served() == {("maxsim", "reference"): 1}


@pytest.mark.parametrize(
    ("name", "reason"), [("triton", "runs on cuda, not on cpu"), ("tritn", "no such kernel; known: triton, blocked")]
)
def test_a_preferred_kernel_that_cannot_serve_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setenv("LI_PLUGINS_BACKEND", name)
    with pytest.warns(
        RuntimeWarning, match=f"LI_PLUGINS_BACKEND={name} cannot serve this call .*{reason}.*blocked does"
    ):
        maxsim(QUERIES, DOCUMENTS)
    assert served() == {("maxsim", "blocked"): 1}


def test_rankers_reorder_or_drop_once_per_plan(strange: Strange) -> None:
    asked: list[tuple[str, Any]] = []

    def no_opinion(op: str, request: Any, kernels: Sequence[Kernel]) -> None:
        asked.append((op, request.width))

    def drop_strange(op: str, request: Any, kernels: Sequence[Kernel]) -> Sequence[Kernel]:
        return [kernel for kernel in kernels if kernel.name != "strange"]

    api.kernel_rankers += [no_opinion, drop_strange, lambda op, request, kernels: pytest.fail("the second answered")]
    for _ in range(3):
        maxsim(QUERIES, DOCUMENTS)
    assert asked == [("maxsim", 4)]
    assert strange.calls == 0


def test_a_plugin_that_comes_later_is_seen(strange: Strange) -> None:
    providers = api.kernel_providers[:]
    api.kernel_providers.clear()
    maxsim(QUERIES, DOCUMENTS)
    api.kernel_providers += providers
    maxsim(QUERIES, DOCUMENTS)
    assert strange.calls == 1
    api.kernel_providers.clear()
    maxsim(QUERIES, DOCUMENTS)
    assert strange.calls == 1


def test_a_provider_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Kernel]:
        raise RuntimeError("plugin is broken")

    api.kernel_providers.append(broken)
    maxsim(QUERIES, DOCUMENTS)
    assert "failed to list its kernels" in caplog.text
    assert "plugin is broken" in caplog.text


@pytest.mark.parametrize(
    ("load", "reason"),
    [("no_such_module:KERNEL", "cannot be imported: No module named"), ("strange_kernels:NONE", "cannot be loaded")],
)
@pytest.mark.usefixtures("strange")
def test_a_kernel_that_cannot_be_loaded_is_passed_over(load: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api.kernel_providers[:] = [lambda: [row(load=load)]]
    assert reason in dict(explain_maxsim(QUERIES, DOCUMENTS).rejected)["strange"]
    monkeypatch.setenv("LI_PLUGINS_STRICT", "1")
    dispatch.reset()
    if "no_such_module" not in load:
        with pytest.raises(AttributeError):
            maxsim(QUERIES, DOCUMENTS)


def test_a_kernel_that_cannot_be_built_is_quarantined_with_one_error(
    strange: Strange, triton_errors: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    strange.error = triton_errors("at 3:7: no such instruction")
    expected, _ = cpu.KERNEL.forward(problem(), False)
    for _ in range(3):
        torch.testing.assert_close(maxsim(QUERIES, DOCUMENTS), expected)
    assert strange.calls == 1
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "kernel 'strange' cannot be compiled" in errors[0].getMessage()
    assert "no such instruction" in errors[0].getMessage()
    reason = dict(explain_maxsim(QUERIES, DOCUMENTS).rejected)["strange"]
    assert reason == "quarantined: CompilationError: at 3:7: no such instruction"
    strange.error = None
    maxsim(torch.ones(2, 3, 8), torch.ones(5, 6, 8))  # another kind of request is planned by itself
    assert strange.calls == 2


def test_a_backward_that_cannot_be_built_takes_the_next_kernels(
    strange: Strange, triton_errors: type[Exception]
) -> None:
    queries = QUERIES.clone().requires_grad_()
    scores = maxsim(queries, DOCUMENTS)
    strange.error = triton_errors("too much shared memory")
    scores.sum().backward()
    assert torch.equal(queries.grad, torch.full_like(QUERIES, 5.0))
    assert served() == {("maxsim", "strange"): 1, ("maxsim backward", "blocked"): 1}


def test_strict_mode_raises_what_the_compiler_raised(
    strange: Strange, triton_errors: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LI_PLUGINS_STRICT", "1")
    strange.error = triton_errors("no such instruction")
    with pytest.raises(triton_errors, match="no such instruction"):
        maxsim(QUERIES, DOCUMENTS)


@pytest.mark.parametrize(
    "error", [RuntimeError("illegal access"), torch.OutOfMemoryError("no memory"), ValueError("x")]
)
def test_every_other_error_propagates(strange: Strange, error: Exception) -> None:
    strange.error = error
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            maxsim(QUERIES, DOCUMENTS)
    assert strange.calls == 2


def test_compile_failures_are_known_by_their_class(triton_errors: type[Exception]) -> None:
    assert _compat.is_compile_failure(triton_errors("x"))
    assert _compat.is_compile_failure(type("Sub", (triton_errors,), {})("x"))
    impostor = type("CompilationError", (Exception,), {"__module__": "somewhere.else"})
    assert not _compat.is_compile_failure(impostor("x"))


def test_the_real_classes_of_triton_are_known() -> None:
    errors = pytest.importorskip("triton.runtime.errors")
    assert _compat.is_compile_failure(errors.OutOfResources(300, 200, "shared memory"))
    compiler = pytest.importorskip("triton.compiler.errors")
    assert issubclass(compiler.CompileTimeAssertionFailure, compiler.CompilationError)
    assert "CompilationError" in _compat._COMPILE_FAILURES


def test_each_plan_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="li_plugins.ops")
    for _ in range(3):
        maxsim(QUERIES, DOCUMENTS)
    assert caplog.text.count("on cpu: blocked") == 1
    assert "not triton: runs on cuda" in caplog.text


def test_compute_capability_is_part_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    request = dispatch.Request.of("maxsim", "scores", problem())._replace(device=torch.device("cuda", 0))
    triton = next(kernel for kernel in registry.kernels("maxsim") if kernel.name == "triton")
    for capability, reason in (((7, 5), "needs compute capability 80 to"), ((9, 0), ""), ((13, 0), "found 130")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert reason in dispatch._misfit(triton, request)
        assert bool(dispatch._misfit(triton, request)) == bool(reason)


def test_large_problems_are_another_kind_of_request() -> None:
    assert not dispatch.Request.of("maxsim", "scores", problem()).large
    wide = torch.empty(1, 1, 1).expand(2**16, 2**15, 1)
    assert dispatch.Request.of("maxsim", "scores", contract.dense(wide, DOCUMENTS[..., :1])).large


def test_plain_torch_needs_no_triton() -> None:
    """On a machine without triton everything works, and explain says why its kernel does not."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from li_plugins.ops import dispatch, maxsim, registry
assert maxsim(torch.ones(1, 2, 3), torch.ones(4, 5, 3)).tolist() == [[6.0] * 4]
triton = next(kernel for kernel in registry.kernels("maxsim") if kernel.name == "triton")
reason = dispatch._loaded(triton)
assert "cannot be imported" in reason and "triton" in reason, reason
assert not any(name.startswith("triton.") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
