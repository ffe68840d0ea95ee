"""Every Triton kernel is compiled for a card that need not be here: what the interpreter takes, a compiler may not.

Each release of triton has a compiler of its own. The host's part of a call runs on the CPU, and its launches compile.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from li_plugins.ops import _compat
from li_plugins.ops.launch import Launcher, Options
from li_plugins.ops.masks import MaskRule
from li_plugins.ops.maxsim.problem import Layout
from li_plugins.ops.maxsim.tuning_sizes import Card
from li_plugins.testing.maxsim_cases import random_problem

triton = pytest.importorskip("triton")
arguments = import_module("li_plugins.ops.maxsim.triton_arguments")
pytestmark = pytest.mark.skipif(arguments.INTERPRETED, reason="triton is interpreted in this process")

CARDS = {80: Card(80, 108, 166_912), 90: Card(90, 132, 232_448)}
TYPES = {
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
}
FACTORS = {"NONE": (torch.float32, None), "ZERO": (torch.float32, torch.float32), "EXCLUDE": (None, torch.bool)}


def built(
    function: Any, signature: dict[str, str], constants: dict[str, Any], capability: int, options: Options
) -> str:
    """Compile a kernel, and return its PTX."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        source = ASTSource(fn=function, signature=signature, constants=constants)
    else:
        every = {name: signature.get(name, "constexpr") for name in names}
        source = ASTSource(
            fn=function, signature=every, constexprs={(names.index(name),): value for name, value in constants.items()}
        )
    given = {name: value for name, value in options._asdict().items() if value is not None}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=given).asm["ptx"]


@pytest.fixture(params=CARDS)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have launches compile for a card, and return the names of the kernels that were."""
    found: list[str] = []

    def launch(
        launcher: Launcher, grid: Any, tensors: Any, strides: Any, sizes: Any, floats: Any, constants: Any, options: Any
    ) -> None:
        kinds = [None if tensor is None else f"*{TYPES[tensor.dtype]}" for tensor in tensors]
        kinds += ["i32"] * len((*strides, *sizes)) + ["fp32"] * len(floats)
        names = launcher._function.arg_names
        signature = {name: kind for name, kind in zip(names, kinds, strict=False) if kind is not None}
        fixed = dict(zip(names[len(kinds) :], constants, strict=True))
        fixed |= {name: None for name, kind in zip(names, kinds, strict=False) if kind is None}
        assert ".visible .entry" in built(launcher._function, signature, fixed, request.param, options)
        found.append(launcher._function.__name__)

    monkeypatch.setattr(Launcher, "__call__", launch)
    monkeypatch.setattr(arguments, "_card", lambda device: CARDS[request.param])
    return found


def maxsim_of(layout: Layout, rule: str, dtype: torch.dtype, **sizes: int) -> Callable[[], object]:
    kernel = import_module("li_plugins.ops.maxsim.triton_kernel").KERNEL
    weights, mask = FACTORS[rule]
    fill = {"NONE": MaskRule.NONE, "ZERO": MaskRule.ZERO, "EXCLUDE": MaskRule.EXCLUDE}[rule]

    def call() -> None:
        problem = random_problem(layout, fill, device="cpu", dtype=dtype, weights=weights, mask=mask, **sizes)
        kernel._forward(problem, False)
        scores, winners = kernel._forward(problem, True)
        kernel._backward(problem, scores.float(), winners, True, True)

    return call


def smooth_of(dtype: torch.dtype, dim: int) -> Callable[[], object]:
    def call() -> None:
        cases = import_module("smooth_maxsim_triton_cases")
        problem = cases.random_problem(dtype=dtype, dim=dim, queries=9, query_length=32)
        scores, sums = cases.KERNEL.forward(problem, True)
        cases.KERNEL.forward(problem, False)
        cases.KERNEL.backward(problem, scores, sums, True, True)

    return call


def stored() -> None:
    cases, kernels = import_module("stored_triton_cases"), import_module("li_plugins.ops.residual.triton_kernel")
    decoded = cases.random_residual(dim=128, query_length=32, dtype=torch.float16, pairs=4)
    if needs_tuples(kernels.RESIDUAL, decoded):
        return
    kernels.RESIDUAL.forward(decoded)
    kernels.RESIDUAL.forward(cases.random_residual(dim=128, query_length=32, dtype=torch.float16, queries=9))


def needs_tuples(kernel: Any, problem: Any) -> bool:
    """Tell whether this triton is too old for a decoder; then the kernel says so."""
    if _compat.passes_tuples():
        return False
    assert "before 3.3" in kernel.supports(problem).reason
    return True


def by_codes() -> None:
    cases, kernels = import_module("stored_triton_cases"), import_module("li_plugins.ops.residual.triton_kernel")
    kernels.CODE.forward(cases.random_code(pairs=4, kept=0.5))


def near() -> None:
    cases = import_module("near_triton_cases")
    cases.NEAR.forward(cases.random_near())


def clustered() -> None:
    kernels, problems = (import_module(f"li_plugins.ops.kmeans.{name}") for name in ("triton_kernel", "problem"))
    rows, centroids = torch.randn(40, 128).half(), torch.randn(70, 128).half()
    kernels.ASSIGN.forward(problems.AssignProblem(rows, centroids, True))
    # one cluster that is added in parts
    rows = torch.randn(2000, 16)
    kernels.SUMS.forward(problems.SumsProblem(rows, torch.zeros(2000, dtype=torch.int32), 3))


def coded() -> None:
    kernels, problems = (import_module(f"li_plugins.ops.codec.{name}") for name in ("triton_kernel", "problem"))
    rows, codes = torch.randn(40, 128).half(), torch.zeros(40, dtype=torch.int32)
    kernels.BINARIZE.forward(problems.BinarizeProblem(rows, torch.randn(3), 2))
    stored = torch.zeros(40, 32, dtype=torch.uint8)
    decoded = problems.DecompressProblem(codes, stored, rows, torch.randn(4).half(), 2, True)
    if not needs_tuples(kernels.DECOMPRESS, decoded):
        kernels.DECOMPRESS.forward(decoded)


SMOOTH = {"smooth_maxsim_forward", "smooth_maxsim_query_gradient", "smooth_maxsim_document_gradient"}

KERNELS: dict[str, tuple[Callable[[], object], set[str]]] = {
    "maxsim": (
        maxsim_of(Layout.CROSS, "NONE", torch.bfloat16, queries=9, documents=3, query_length=32, document_length=70),
        {"maxsim_forward", "maxsim_query_gradient", "maxsim_count_winners", "maxsim_sorted_gradient"},
    ),
    "candidates": (
        maxsim_of(Layout.CANDIDATES, "ZERO", torch.float32, queries=2, documents=2, query_length=8, document_length=40),
        {"maxsim_forward", "maxsim_kept", "maxsim_query_gradient", "maxsim_candidate_gradient"},
    ),
    "packed": (
        maxsim_of(Layout.PACKED_CROSS, "EXCLUDE", torch.float16, queries=1, documents=3),
        {"maxsim_forward", "maxsim_kept", "maxsim_query_gradient", "maxsim_document_gradient"},
    ),
    "pairs": (
        maxsim_of(Layout.PACKED_PAIRS, "NONE", torch.bfloat16, queries=2, documents=3),
        {"maxsim_forward", "maxsim_query_gradient", "maxsim_document_gradient"},
    ),
    "maxsim in halves": (
        maxsim_of(Layout.CROSS, "ZERO", torch.float32, queries=9, documents=3, query_length=32, document_length=70),
        {"maxsim_halves", "maxsim_forward"},
    ),
    "smooth": (smooth_of(torch.bfloat16, 8), SMOOTH),
    "smooth in halves": (smooth_of(torch.float32, 128), SMOOTH | {"maxsim_halves"}),
    "stored": (stored, {"residual_maxsim_forward"} if _compat.passes_tuples() else set()),
    "codes": (by_codes, {"code_maxsim_forward"}),
    "near": (near, {"near_in_blocks", "mark_near"}),
    "k-means": (clustered, {"nearest_group", "nearest_in_group", "sum_parts", "add_parts"}),
    "codec": (coded, {"pack_buckets", "unpack_rows"} if _compat.passes_tuples() else {"pack_buckets"}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile(compiled: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, expected = KERNELS[name]
    for module in ("smooth_maxsim", "stored", "near"):
        monkeypatch.setattr(f"{module}_triton_cases.DEVICE", "cpu")
    if "halves" in name:
        monkeypatch.setattr(arguments, "_is_halved", lambda sizes, device: True)
    call()
    assert expected <= set(compiled), sorted(set(compiled))


def test_no_number_of_rows_is_compiled_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of k-means and of the codec: one compiled form serves whatever length a collection has."""
    forms: dict[str, set[Any]] = {}

    def launch(
        launcher: Launcher, grid: Any, tensors: Any, strides: Any, sizes: Any, floats: Any, constants: Any, options: Any
    ) -> None:
        first = len(tensors) + len(strides)
        for parameter in launcher._function.params[first : first + len(sizes)]:
            assert parameter.do_not_specialize, f"{launcher._function.__name__}: {parameter.name}"
        forms.setdefault(launcher._function.__name__, set()).add((constants, options))

    monkeypatch.setattr(Launcher, "__call__", launch)
    monkeypatch.setattr(arguments, "_card", lambda device: CARDS[90])
    kmeans, codec = (import_module(f"li_plugins.ops.{name}.triton_kernel") for name in ("kmeans", "codec"))
    clusters, stored = (import_module(f"li_plugins.ops.{name}.problem") for name in ("kmeans", "codec"))
    centroids = torch.randn(70, 128).half()
    for count in (1000, 1024, 4097, 20_000):
        rows, codes = torch.randn(count, 128).half(), torch.zeros(count, dtype=torch.int32)
        kmeans.ASSIGN.forward(clusters.AssignProblem(rows, centroids, True))
        kmeans.SUMS.forward(clusters.SumsProblem(rows, codes, 70))
        codec.BINARIZE.forward(stored.BinarizeProblem(rows, torch.randn(3), 2))
        residuals = torch.zeros(count, 32, dtype=torch.uint8)
        decoded = stored.DecompressProblem(codes, residuals, centroids, torch.randn(4).half(), 2, True)
        if not needs_tuples(codec.DECOMPRESS, decoded):
            codec.DECOMPRESS.forward(decoded)
    assert {"nearest_group", "sum_parts", "pack_buckets"} <= set(forms)
    assert {name: len(found) for name, found in forms.items()} == dict.fromkeys(forms, 1)
