"""XTR scores: what the library returns and what flows back, patched and unpatched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.multi_vector_encoder import losses, scoring
from sentence_transformers.multi_vector_encoder.scoring import xtr
from st_batches import BOTH_GRADS, HALVES, MASKS, embeddings, forget_warnings, prefix
from torch import Tensor

import li_plugins
from li_plugins.testing.parity import assert_parity, call_unpatched, functions_seen, outcome

NAMES = ["xtr_scores", "xtr_kd_scores", "xtr_scores_pairwise"]
MINE = {"xtr_scores": "xtr_scores", "xtr_kd_scores": "xtr_kd_scores", "xtr_scores_pairwise": "xtr_kd_scores"}
"""The target that a function reaches."""
TOP_K = [1, 9, 60, 256]
"""The last is more than there are tokens."""


def function(name: str) -> Callable[..., Tensor]:
    # looked up in each test: nothing is patched when this module is collected
    return getattr(xtr, name)


def batch(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    leading = {"xtr_scores": (4, 3), "xtr_kd_scores": (3, 4), "xtr_scores_pairwise": (3,)}[name]
    return [embeddings(3, 5, 16, dtype=dtype), embeddings(*leading, 7, 16, dtype=dtype)]


def leading(sides: list[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(sides[0].shape[:-1]), tuple(sides[1].shape[:-1])


# Masks, shapes, dtypes


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("top_k", TOP_K)
@pytest.mark.parametrize("name", NAMES)
def test_masks_mean_what_the_library_says(
    name: str, top_k: int, mask: str, dtype: torch.dtype, li_plugins_counts: Any
) -> None:
    sides = batch(name, dtype)
    found = assert_parity(function(name), sides, *MASKS[mask](*leading(sides)), top_k, wanted=BOTH_GRADS).scores
    assert found.dtype is torch.float32
    assert mask != "all masked" or found.unique().tolist() == [-1e9]
    assert li_plugins_counts.calls == {f"{xtr.__name__}:{MINE[name]}": 1}


@pytest.mark.parametrize("top_k", [3, 256])
@pytest.mark.parametrize("name", NAMES)
def test_in_float64_alike_to_the_last_digits_of_float32(name: str, top_k: int) -> None:
    """The library rounds its maxima to float32."""
    sides = batch(name, torch.float64)
    masks = MASKS["both"](*leading(sides))
    ours, library = function(name)(*sides, *masks, top_k), call_unpatched(function(name), *sides, *masks, top_k)
    assert ours.dtype is library.dtype is torch.float32
    torch.testing.assert_close(ours, library, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zero_rows_are_padding_without_a_mask(name: str) -> None:
    sides = batch(name)
    sides[0][1, 3:], sides[1][..., 5:, :] = 0, 0
    assert_parity(function(name), sides, wanted=BOTH_GRADS)
    sides[1][0] = 0
    assert assert_parity(function(name), sides, wanted=BOTH_GRADS).scores.min() == -1e9


@pytest.mark.parametrize("top_k", [2, 60])
@pytest.mark.parametrize("name", NAMES)
def test_negative_similarities_stay_negative(name: str, top_k: int) -> None:
    sides = batch(name)
    found = assert_parity(function(name), [sides[0].abs(), -sides[1].abs()], None, None, top_k, wanted=BOTH_GRADS)
    assert (found.scores < 0).any()


@pytest.mark.parametrize(
    ("queries", "documents", "query_tokens", "document_tokens", "width", "top_k"),
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
    queries: int, documents: int, query_tokens: int, document_tokens: int, width: int, top_k: int
) -> None:
    sides = [embeddings(queries, query_tokens, width), embeddings(queries, documents, document_tokens, width)]
    mask = prefix((queries, documents, document_tokens))
    for name in ("xtr_scores", "xtr_kd_scores"):
        assert_parity(function(name), sides, None, mask, top_k, wanted=BOTH_GRADS)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", NAMES)
def test_equal_similarities(name: str, seed: int) -> None:
    """On the CPU the same of several equal tokens are retrieved, since the same ``topk`` is asked."""
    torch.manual_seed(seed)
    sides = [torch.randint(-1, 2, side.shape).float() for side in batch(name)]
    leaves = [[side.clone().requires_grad_() for side in sides] for _ in range(2)]
    ours = function(name)(*leaves[0], None, None, 20)
    library = call_unpatched(function(name), *leaves[1], None, None, 20)
    torch.testing.assert_close(ours, library)
    for scores in (ours, library):
        (scores * torch.linspace(-1, 1, scores.numel()).view(scores.shape)).sum().backward()
    for mine, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


# Inputs


@pytest.mark.parametrize("name", NAMES)
def test_strides_arrays_and_integers(name: str) -> None:
    sides = batch(name)
    others = [
        [side.transpose(-1, -2).contiguous().transpose(-1, -2) for side in sides],
        [side.numpy() for side in sides],
        [np.rint(side.numpy() * 100).astype(np.int8) for side in sides],
    ]
    for pair in others:
        ours = function(name)(*pair, top_k=9)
        torch.testing.assert_close(ours, call_unpatched(function(name), *pair, top_k=9))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_on_one_side_only(name: str, wanted: tuple[bool, bool]) -> None:
    sides = batch(name)
    assert_parity(function(name), sides, *MASKS["both"](*leading(sides)), 9, wanted=wanted)


@pytest.mark.parametrize("chunk_elements", [1, 5000])
@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_elements_changes_nothing(name: str, chunk_elements: int) -> None:
    assert_parity(function(name), batch(name), None, None, 9, chunk_elements, wanted=BOTH_GRADS)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["none", "holes", "weights"])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, mask: str, lowered: torch.dtype) -> None:
    sides = batch(name)
    assert_parity(function(name), sides, *MASKS[mask](*leading(sides)), wanted=BOTH_GRADS, lowered=lowered)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_modes_without_gradients(name: str, mode: Callable[[], Any]) -> None:
    sides = batch(name)
    sides[0].requires_grad_()
    with mode():
        ours, library = function(name)(*sides), call_unpatched(function(name), *sides)
    assert (ours.requires_grad, ours.is_inference()) == (library.requires_grad, library.is_inference())
    torch.testing.assert_close(ours, library)


def test_nan_goes_where_the_library_lets_it() -> None:
    sides = batch("xtr_scores")
    sides[1][1, 2, 3] = torch.nan
    ours, library = xtr.xtr_scores(*sides, top_k=9), call_unpatched(xtr.xtr_scores, *sides, top_k=9)
    torch.testing.assert_close(ours, library, equal_nan=True)
    assert ours.isnan().any()
    assert not ours.isnan().all()


# What stays the library's


@pytest.mark.parametrize("name", NAMES)
def test_the_warning_of_documents_without_tokens_stays(name: str, caplog: pytest.LogCaptureFixture) -> None:
    sides = batch(name)
    mask = MASKS["one masked"](*leading(sides))[1]
    said = []
    for call in (function(name), lambda *arguments: call_unpatched(function(name), *arguments)):
        forget_warnings()
        caplog.clear()
        with caplog.at_level("WARNING", logger="sentence_transformers"):
            call(*sides, None, mask)
        said.append([record.message for record in caplog.records if "scoreable token" in record.message])
    assert said[0] == said[1]
    assert len(said[0]) == 1


def q(*shape: int) -> Tensor:
    return torch.ones(*shape)


DECLINED: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "top_k of 0": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"top_k": 0}),
    "top_k that is a bool": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"top_k": True}),
    "top_k that is a float": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"top_k": 2.0}),
    "a budget that is a text": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"chunk_elements": "1"}),
    "documents of rank 3": ("xtr_scores", (q(2, 3, 8), q(2, 3, 8)), {}),
    "queries of rank 2": ("xtr_scores", (q(3, 8), q(2, 2, 3, 8)), {}),
    "no documents": ("xtr_scores", (q(2, 3, 8), q(2, 0, 3, 8)), {}),
    "no tokens": ("xtr_scores", (q(2, 3, 8), q(2, 2, 0, 8)), {}),
    "other dimension": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 4)), {}),
    "other dtype": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8).half()), {}),
    "sparse": ("xtr_scores", (q(2, 3, 8).to_sparse(), q(2, 2, 3, 8)), {}),
    "a number": ("xtr_scores", (3, q(2, 2, 3, 8)), {}),
    "a mask of documents in a row": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"documents_mask": q(4, 3)}),
    "a mask of one document": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"documents_mask": q(1, 1, 3)}),
    "a mask of other queries": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"queries_mask": q(4, 3)}),
    "a mask that is a list": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"queries_mask": [1.0]}),
    "a float64 mask": ("xtr_scores", (q(2, 3, 8), q(2, 2, 3, 8)), {"queries_mask": q(2, 3).double() / 3}),
    "fewer candidates than queries": ("xtr_kd_scores", (q(3, 3, 8), q(2, 2, 3, 8)), {}),
    "more candidates than queries": ("xtr_kd_scores", (q(2, 3, 8), q(3, 2, 3, 8)), {}),
    "pairs of rank 5": ("xtr_scores_pairwise", (q(2, 3, 8), q(2, 1, 1, 3, 8)), {}),
}


@pytest.mark.allow_fallback(reason="what XTR has no meaning for is the library's to answer")
@pytest.mark.parametrize("case", DECLINED)
def test_the_library_answers_what_is_not_ours(case: str, li_plugins_counts: Any) -> None:
    name, arguments, keywords = DECLINED[case]
    ours = outcome(lambda: function(name)(*arguments, **keywords))
    library = call_unpatched(outcome, lambda: function(name)(*arguments, **keywords))
    if isinstance(library, Tensor):
        assert (ours.dtype, ours.device, ours.shape) == (library.dtype, library.device, library.shape)
        torch.testing.assert_close(ours, library)
    else:
        assert ours == library
    assert any(target.endswith((f":{name}", f":{MINE[name]}")) for target in li_plugins_counts.declines)


@pytest.mark.allow_fallback(reason="a mask with a gradient is the library's to differentiate")
def test_a_mask_that_requires_a_gradient_gets_it() -> None:
    mask = torch.rand(3, 5, requires_grad=True)
    xtr.xtr_scores(*batch("xtr_scores"), mask).sum().backward()
    assert mask.grad is not None
    assert mask.grad.any()


@pytest.mark.allow_fallback(reason="subclasses may give a product a meaning of their own")
def test_subclasses_reach_the_library() -> None:
    sides = batch("xtr_scores")
    seen = functions_seen(lambda traced: xtr.xtr_scores(sides[0].as_subclass(traced), sides[1]))
    assert "topk" in seen


@pytest.mark.allow_fallback(reason="the user's own function comes first")
def test_a_user_who_replaces_xtr_scores_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    original = xtr.xtr_scores
    monkeypatch.setattr(xtr, "xtr_scores", lambda *arguments, **rest: original(*arguments, **rest).fill_(7.0))
    assert xtr.xtr_kd_scores(*batch("xtr_kd_scores")).unique().tolist() == [7]


# Seen from outside


@pytest.mark.parametrize("name", NAMES[:2])
def test_explain_names_the_kernel_or_the_reason(name: str) -> None:
    sides = batch(name)
    assert "xtr_maxsim (scores)" in str(li_plugins.explain(function(name), *sides))
    assert "blocked" in str(li_plugins.explain(function(name), *sides))
    assert "needs a positive int" in str(li_plugins.explain(function(name), *sides, top_k=0))


@pytest.mark.switches
def test_instances_and_losses_that_were_made_before(make_model: Callable[..., Any], li_plugins_counts: Any) -> None:
    model = make_model()
    texts = ["fruits are healthy.", "heat of a wing, in flow"]
    ranking = losses.MultiVectorMultipleNegativesRankingLoss(model, similarity_fct=scoring.XTRScores(top_k=5))
    distilling = losses.MultiVectorDistillKLDivLoss(model, similarity_fct=scoring.XTRKDScores(top_k=5))
    features = [model.preprocess(texts), model.preprocess(texts[::-1]), model.preprocess(texts)]
    values = {}
    for name in ("library", "ours"):
        if name == "ours":
            li_plugins.enable("sentence-transformers", strict=True)
        values[name] = [
            ranking([dict(item) for item in features], None),
            distilling([dict(item) for item in features], torch.rand(2, 2, generator=torch.manual_seed(0))),
        ]
    for mine, theirs in zip(values["ours"], values["library"], strict=True):
        torch.testing.assert_close(mine, theirs)
    calls = {target.rpartition(":")[2]: count for target, count in li_plugins_counts.calls.items()}
    assert calls == {"xtr_scores": 1, "xtr_kd_scores": 1}
    assert not li_plugins_counts.declines


@pytest.mark.switches
@pytest.mark.parametrize("name", NAMES[:2])
def test_compiled_before_patched_and_after_the_undo(name: str, li_plugins_counts: Any) -> None:
    from li_plugins.ops import dispatch

    torch._dynamo.reset()
    sides = batch(name)
    scores = function(name)

    def runs() -> int:
        return sum(count for (label, _), count in dispatch.counters().items() if label == "xtr_maxsim")

    traced = torch.compile(lambda *both: 2 * scores(*both, None, None, 9), fullgraph=True, backend="eager")
    before, expected = runs(), traced(*sides)
    assert runs() == before
    li_plugins.enable("sentence-transformers")
    torch.testing.assert_close(traced(*sides), expected)
    assert runs() == before + 1
    li_plugins.disable_all()
    torch.testing.assert_close(traced(*sides), expected)
    assert runs() == before + 1


PEAKS = """
import json, sys
from pathlib import Path

import torch
import li_plugins
from sentence_transformers.multi_vector_encoder.scoring import xtr_kd_scores, xtr_scores

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

queries = torch.randn(48, 32, 64, requires_grad=True)
documents = torch.randn(48, 4, 100, 64, requires_grad=True)  # 5 MiB; the grid has 113

def step(function, count):
    function(queries[:count], documents[:count]).log_softmax(-1).sum().backward()

found = {}
for name in ("library", "ours"):
    if name == "ours":
        li_plugins.enable("sentence-transformers", strict=True)
    for function in (xtr_scores, xtr_kd_scores):
        step(function, 1)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        step(function, 48)
        found[f"{name} {function.__name__}"] = status("VmHWM") - before
print(json.dumps(found))
"""


@pytest.mark.switches
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the high-water mark from Linux's /proc")
def test_memory_is_a_fraction_of_the_librarys() -> None:
    done = subprocess.run([sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True, timeout=280)
    found = json.loads(done.stdout.splitlines()[-1])
    for name in NAMES[:2]:
        assert found[f"library {name}"] > 300, found
        assert found[f"ours {name}"] < found[f"library {name}"] / 4, found
