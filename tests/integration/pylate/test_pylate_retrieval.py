"""PyLate's XTR scores: what they return and what flows back, patched and unpatched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from score_cases import MASKS, embeddings, lengths
from torch import Tensor

import li_plugins
from li_plugins.testing import parity
from li_plugins.testing.parity import call_unpatched, functions_seen, outcome

xtr = pytest.importorskip("pylate.scores.xtr", reason="PyLate has XTR scores since 1.5")

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BOTH_GRADS = (True, True)
SUMMED = 0.6
"""What is summed for a similarity of unit vectors, in absolute values: without signs, others would be retrieved."""
NAMES = ["XTRScores", "XTRKDScores"]
TARGET = "pylate.scores.xtr:XTRScores._score"
K = [1, 9, 60, 84]
"""The last is the number of document tokens."""


def scores(name: str, *arguments: Any) -> Any:
    return getattr(xtr, name)(*arguments)


assert_parity = partial(parity.assert_parity, summed=SUMMED)


def batch(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [embeddings(3, 5, 16, dtype=dtype), embeddings(3, 4, 7, 16, dtype=dtype)]


# Masks, shapes, dtypes


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("k", K)
@pytest.mark.parametrize("name", NAMES)
def test_masks_mean_what_pylate_says(name: str, k: int, mask: str, dtype: torch.dtype, li_plugins_counts: Any) -> None:
    masks = MASKS[mask]((3, 5), (3, 4, 7))
    if mask == "all masked" or (k == 84 and masks[1] is not None):
        # A masked token that is retrieved is worth dtype's least number: sums of these are what rounding makes of them.
        return assert_alike_where_finite(name, k, dtype, masks)
    found = assert_parity(scores(name, k), batch(dtype), *masks, wanted=BOTH_GRADS).scores
    assert found.dtype is torch.float32
    assert li_plugins_counts.calls == {TARGET: 1}
    return None


def assert_alike_where_finite(name: str, k: int, dtype: torch.dtype, masks: Any) -> None:
    sides = batch(dtype)
    ours, library = scores(name, k)(*sides, *masks), call_unpatched(scores(name, k), *sides, *masks)
    is_plain = library.abs() < 1e4
    assert torch.equal(ours.abs() < 1e4, is_plain)
    torch.testing.assert_close(ours[is_plain], library[is_plain], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_of_a_masked_document_retrieved(name: str) -> None:
    sides = batch()
    mask = torch.ones(3, 4, 7)
    mask[0, 0] = 0
    ours, library = scores(name, 84)(*sides, None, mask), call_unpatched(scores(name, 84), *sides, None, mask)
    torch.testing.assert_close(ours, library)
    assert ours[:, 0].min() < -1e38


@pytest.mark.parametrize("k", [2, 84])
@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_is_not_retrieved_beats_negative_similarities(name: str, k: int) -> None:
    sides = batch()
    found = assert_parity(scores(name, k), [sides[0].abs(), -sides[1].abs()], wanted=BOTH_GRADS).scores
    # no maximum is positive, and what they are divided by is 0.001
    assert (found < -100).all() if k == 84 else not found.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("queries", "documents", "query_tokens", "document_tokens", "width", "k"),
    [
        (1, 1, 1, 1, 2, 1),
        (2, 5, 32, 180, 128, 256),
        (5, 3, 17, 63, 48, 40),
        (2, 2, 257, 33, 320, 7),
        (2, 1, 2, 4096, 16, 256),
        (1, 127, 64, 1, 24, 5),
        (4, 2, 1, 1271, 72, 2000),
    ],
)
def test_odd_shapes(
    queries: int, documents: int, query_tokens: int, document_tokens: int, width: int, k: int, dtype: torch.dtype
) -> None:
    sides = [embeddings(queries, query_tokens, width), embeddings(queries, documents, document_tokens, width)]
    mask = lengths((queries, documents, document_tokens))
    if dtype is torch.float32:
        for name in NAMES:
            assert_parity(scores(name, k), sides, None, mask, wanted=BOTH_GRADS)
        return
    # 16 bits tell few of thousands of similarities apart: PyLate retrieves others than the exact products say
    lowered = [side.to(dtype) for side in sides]
    truth = call_unpatched(xtr.XTRScores(k), *(side.double() for side in lowered), None, mask)
    torch.testing.assert_close(xtr.XTRScores(k)(*lowered, None, mask), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", NAMES)
def test_equal_similarities_and_zeros(name: str, seed: int) -> None:
    """On the CPU the same of several equal tokens are retrieved, since the same ``topk`` is asked."""
    torch.manual_seed(seed)
    sides = [torch.randint(-1, 2, side.shape).float() for side in batch()]
    leaves = [[side.clone().requires_grad_() for side in sides] for _ in range(2)]
    ours, library = scores(name, 20)(*leaves[0]), call_unpatched(scores(name, 20), *leaves[1])
    torch.testing.assert_close(ours, library)
    for found in (ours, library):
        (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
    for mine, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


# Inputs


@pytest.mark.parametrize("name", NAMES)
def test_strides_arrays_and_lists(name: str) -> None:
    sides = batch()
    for pair in (
        [side.transpose(-1, -2).contiguous().transpose(-1, -2) for side in sides],
        [side.numpy() for side in sides],
        [list(side) for side in sides],
    ):
        torch.testing.assert_close(scores(name, 9)(*pair), call_unpatched(scores(name, 9), *pair))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_on_one_side_only(name: str, wanted: tuple[bool, bool]) -> None:
    assert_parity(scores(name, 9), batch(), *MASKS["both"]((3, 5), (3, 4, 7)), wanted=wanted)


@pytest.mark.parametrize("chunk", [1, 5, 99])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing(name: str, chunk: int) -> None:
    assert_parity(scores(name, 9, chunk), batch(), *MASKS["both"]((3, 5), (3, 4, 7)), wanted=BOTH_GRADS)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["none", "weights", "queries"])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, mask: str, lowered: torch.dtype) -> None:
    masks = MASKS[mask]((3, 5), (3, 4, 7))
    assert_parity(scores(name, 40), batch(), *masks, wanted=BOTH_GRADS, lowered=lowered)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(mode: Callable[[], Any]) -> None:
    sides = batch()
    sides[0].requires_grad_()
    with mode():
        ours, library = xtr.XTRScores(9)(*sides), call_unpatched(xtr.XTRScores(9), *sides)
    assert (ours.requires_grad, ours.is_inference()) == (library.requires_grad, library.is_inference())
    torch.testing.assert_close(ours, library)


# What stays PyLate's


def q(*shape: int) -> Tensor:
    return torch.ones(*shape)


DECLINED: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "more than there are tokens": ((13,), (q(2, 3, 8), q(2, 2, 3, 8))),
    "the default of 256": ((), (q(2, 3, 8), q(2, 2, 3, 8))),
    "k of 0": ((0,), (q(2, 3, 8), q(2, 2, 3, 8))),
    "k that is a float": ((2.0,), (q(2, 3, 8), q(2, 2, 3, 8))),
    "chunks of 0": ((2, 0), (q(2, 3, 8), q(2, 2, 3, 8))),
    "documents of rank 3": ((2,), (q(2, 3, 8), q(2, 3, 8))),
    "queries of rank 2": ((2,), (q(3, 8), q(2, 2, 3, 8))),
    "no documents": ((2,), (q(2, 3, 8), q(2, 0, 3, 8))),
    "no tokens": ((2,), (q(2, 3, 8), q(2, 2, 0, 8))),
    "other dimension": ((2,), (q(2, 3, 8), q(2, 2, 3, 4))),
    "other dtype": ((2,), (q(2, 3, 8), q(2, 2, 3, 8).half())),
    "int64": ((2,), (q(2, 3, 8).long(), q(2, 2, 3, 8).long())),
    "a number": ((2,), (3, q(2, 2, 3, 8))),
    "a mask of documents in a row": ((2,), (q(2, 3, 8), q(2, 2, 3, 8), None, q(4, 3))),
    "a mask of one document": ((2,), (q(2, 3, 8), q(2, 2, 3, 8), None, q(1, 1, 3))),
    "a mask of other queries": ((2,), (q(2, 3, 8), q(2, 2, 3, 8), q(4, 3))),
    "a mask that is an array": ((2,), (q(2, 3, 8), q(2, 2, 3, 8), None, np.ones((2, 2, 3)))),
    "a float64 mask": ((2,), (q(2, 3, 8), q(2, 2, 3, 8), q(2, 3).double() / 3)),
}


@pytest.mark.allow_fallback(reason="what XTR has no meaning for is the library's to answer")
@pytest.mark.parametrize("case", DECLINED)
def test_the_library_answers_what_is_not_ours(case: str, li_plugins_counts: Any) -> None:
    settings, arguments = DECLINED[case]
    call = xtr.XTRScores(*settings)
    ours = outcome(lambda: call(*arguments))
    library = call_unpatched(outcome, lambda: call(*arguments))
    if isinstance(library, Tensor):
        assert (ours.dtype, ours.shape) == (library.dtype, library.shape)
        assert torch.equal(ours, library)
    else:
        assert ours == library
    assert set(li_plugins_counts.declines) == {TARGET}


@pytest.mark.allow_fallback(reason="a mask with a gradient is the library's to differentiate")
def test_a_mask_that_requires_a_gradient_gets_it() -> None:
    mask = torch.rand(3, 5, requires_grad=True)
    (xtr.XTRScores(9)(*batch(), mask) * torch.rand(3, 12)).sum().backward()
    assert mask.grad is not None
    assert mask.grad.any()


@pytest.mark.allow_fallback(reason="subclasses may give a product a meaning of their own")
def test_subclasses_reach_the_library() -> None:
    sides = batch()
    seen = functions_seen(lambda traced: xtr.XTRScores(9)(sides[0].as_subclass(traced), sides[1]))
    assert "topk" in seen


# Seen from outside


def test_explain_names_the_kernel_or_the_reason() -> None:
    sides = batch()
    assert "xtr_maxsim (scores)" in str(li_plugins.explain(xtr.XTRScores._score, xtr.XTRScores(9), *sides, None, None))
    refused = str(li_plugins.explain(xtr.XTRScores._score, xtr.XTRScores(), *sides, None, None))
    assert "more than the 84 document tokens" in refused


@pytest.mark.switches
@pytest.mark.parametrize("name", NAMES)
def test_instances_that_were_made_before(name: str, li_plugins_counts: Any) -> None:
    held, sides = scores(name, 9), batch()
    expected = held(*sides)
    li_plugins.enable("pylate", strict=True)
    torch.testing.assert_close(held(*sides), expected)
    assert li_plugins_counts.calls == {TARGET: 1}
    li_plugins.disable_all()
    held(*sides)
    assert li_plugins_counts.calls == {TARGET: 1}


@pytest.mark.switches
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_instance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``compile()`` gives an instance a ``_score`` of its own, which traces the class's."""
    from li_plugins.ops import dispatch

    torch._dynamo.reset()
    held, sides = scores(name, 9), batch()
    held.compile(fullgraph=True, backend="eager")
    expected = held(*sides)

    def runs() -> int:
        return sum(count for (label, _), count in dispatch.counters().items() if label == "xtr_maxsim")

    before = runs()
    li_plugins.enable("pylate", strict=True)
    torch.testing.assert_close(held(*sides), expected)
    assert runs() == before + 1
    li_plugins.disable_all()
    torch.testing.assert_close(held(*sides), expected)
    assert runs() == before + 1


@pytest.mark.switches
@pytest.mark.parametrize("loss_name", ["Contrastive", "CachedContrastive", "Distillation"])
def test_losses(make_model: Callable[..., Any], loss_name: str, li_plugins_counts: Any) -> None:
    from pylate import losses

    model = make_model()
    texts = ["fruits are good for health.", "the boundary layer, and heat.", "a wave!", "eat apples."]
    queries = model.tokenize(["fruits are healthy", "heat of a wing"], is_query=True, pad=True)
    columns = [model.tokenize(texts[i : i + 2], is_query=False, pad=True) for i in (0, 2)]
    if loss_name == "Distillation":
        columns = [{key: torch.cat([column[key] for column in columns]) for key in columns[0]}]
    metric = scores("XTRKDScores" if loss_name == "Distillation" else "XTRScores", 10)
    loss = getattr(losses, loss_name)(model=model, score_metric=metric)
    labels = torch.rand(2, 2) if loss_name == "Distillation" else None
    found = []
    for is_patched in (False, True):
        if is_patched:
            li_plugins.enable("pylate", strict=True)
        model.zero_grad()
        value = loss([dict(item) for item in [queries, *columns]], labels)
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert li_plugins_counts.calls[TARGET] >= 1
    assert TARGET not in li_plugins_counts.declines


PEAKS = """
import json, sys
from pathlib import Path

import torch
import li_plugins
from pylate.scores.xtr import XTRKDScores, XTRScores

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

queries = torch.randn(48, 32, 64, requires_grad=True)
documents = torch.randn(48, 4, 100, 64, requires_grad=True)  # 5 MiB; the grid has 113

def step(scores, count):
    scores(64)(queries[:count], documents[:count]).log_softmax(-1).sum().backward()

found = {}
for name in ("library", "ours"):
    if name == "ours":
        li_plugins.enable("pylate", strict=True)
    for scores in (XTRScores, XTRKDScores):
        step(scores, 1)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        step(scores, 48)
        found[f"{name} {scores.__name__}"] = status("VmHWM") - before
print(json.dumps(found))
"""


@pytest.mark.switches
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the high-water mark from Linux's /proc")
def test_memory_is_a_fraction_of_the_librarys() -> None:
    done = subprocess.run([sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True, timeout=280)
    found = json.loads(done.stdout.splitlines()[-1])
    for name in NAMES:
        assert found[f"library {name}"] > 300, found
        assert found[f"ours {name}"] < found[f"library {name}"] / 4, found
