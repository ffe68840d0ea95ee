"""The five losses: values and gradients, patched and unpatched."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from colpali_engine.loss import late_interaction_losses as library
from torch import Tensor

import li_plugins
from li_plugins.testing.oracle import judge

INBATCH = ("ColbertLoss", "ColbertPairwiseCELoss", "ColbertSigmoidLoss")
NEGATIVE = ("ColbertNegativeCELoss", "ColbertPairwiseNegativeCELoss")
LOSSES = [name for name in (*INBATCH, *NEGATIVE) if hasattr(library, name)]
OPTIONS = [
    dict(zip(("use_smooth_max", "pos_aware_negative_filtering", "normalize_scores"), flags, strict=True))
    for flags in itertools.product((False, True), repeat=3)
]
NEGATIVES = 3
ONE_NEGATIVE = not hasattr(library, "ColbertSigmoidLoss")
"""Before 0.3.13 a query has one negative, of rank 3."""

pytestmark = pytest.mark.skipif(not hasattr(library, "ColbertModule"), reason="0.3.10 has other losses")


def arguments(name: str, documents: int = 4, queries: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Positive similarities, as of a trained model: no warning of scores out of bounds, no ties."""
    shapes = [(queries, 5, 12), (documents, 9, 12)]
    if name in NEGATIVE:
        shapes.append((queries, 7, 12) if ONE_NEGATIVE else (queries, NEGATIVES, 7, 12))
    found = [torch.nn.functional.normalize(torch.rand(shape), dim=-1).to(dtype) for shape in shapes]
    found[0][1, 3:] = 0  # a shorter query
    return found


def outcome(loss: Callable[..., Tensor], tensors: list[Tensor], **keywords: Any) -> list[Tensor]:
    """Return the loss and the gradients, those of padding left out: which of equals wins is anybody's choice."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves, **keywords)
    value.backward()
    return [value.detach(), *(leaf.grad * (leaf.detach() != 0).any(-1, keepdim=True) for leaf in leaves)]


def assert_same(name: str, tensors: list[Tensor], options: dict[str, Any], **keywords: Any) -> None:
    loss = getattr(library, name)(**options)
    ours = outcome(loss, tensors, **keywords)
    with li_plugins.suspended():
        theirs = outcome(getattr(library, name)(**options), tensors, **keywords)
        exact = outcome(getattr(library, name)(**options).double(), [t.double() for t in tensors], **keywords)
    for kind, mine, his, truth in zip(("loss", *("gradient",) * 3), ours, theirs, exact, strict=False):
        assert mine.dtype == his.dtype
        # The temperature divides rounded scores, and what is left of 1 - p has the rounding of 1.
        magnitude = 4 / loss.temperature * max(1, truth.abs().max().item())
        verdict = judge(mine, truth, his, magnitude=magnitude, rounding=tensors[0].dtype, name=kind)
        assert verdict, f"{name} {options}: {verdict}"


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: " ".join(k for k, v in options.items() if v) or "plain"
)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients(name: str, options: dict[str, bool], li_plugins_counts: Any) -> None:
    if ONE_NEGATIVE and name in NEGATIVE and options["use_smooth_max"]:
        pytest.skip("the library's own, as is its loss")
    assert_same(name, arguments(name), options)
    assert li_plugins_counts.calls


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ColbertSigmoidLoss"])
def test_documents_of_other_ranks(name: str) -> None:
    """Gathered documents: more than queries, the positives from an offset on."""
    if name in NEGATIVE and ONE_NEGATIVE:
        pytest.skip("an offset of positives came with 0.3.13")
    tensors = arguments(name, documents=12)
    assert_same(name, tensors, {}, offset=4)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16(name: str) -> None:
    tensors = arguments(name, dtype=torch.bfloat16)
    assert_same(name, tensors, {"temperature": 1.0})


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_made_before_is_patched_too(name: str, li_plugins_counts: Any) -> None:
    tensors = arguments(name)
    with li_plugins.suspended():
        loss = getattr(library, name)()
        theirs = outcome(loss, tensors)
    before = dict(li_plugins_counts.calls)
    for mine, his in zip(outcome(loss, tensors), theirs, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5)
    assert li_plugins_counts.calls != before


@pytest.mark.allow_fallback(reason="a subclass with a maximum of its own is not ours")
def test_a_subclass_with_its_own_maximum_keeps_it() -> None:
    class Doubled(library.ColbertLoss):
        def _smooth_max(self, scores: Tensor, dim: int) -> Tensor:
            return 2 * super()._smooth_max(scores, dim)

    tensors = arguments("ColbertLoss")
    ours = Doubled(use_smooth_max=True, normalize_scores=False)(*tensors)
    with li_plugins.suspended():
        assert torch.equal(ours, Doubled(use_smooth_max=True, normalize_scores=False)(*tensors))


@pytest.mark.allow_fallback(reason="what has no meaning is the library's to answer")
@pytest.mark.parametrize("name", LOSSES)
def test_errors_are_the_librarys(name: str) -> None:
    tensors = arguments(name)
    tensors[-1] = tensors[-1][..., :5]

    def complaint() -> tuple[type, str]:
        with pytest.raises(RuntimeError) as found:
            getattr(library, name)()(*tensors)
        return found.type, str(found.value)

    ours = complaint()
    with li_plugins.suspended():
        assert ours == complaint()


@pytest.mark.parametrize("name", LOSSES)
def test_scores_out_of_bounds_are_reported_as_before(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = [3 * tensor for tensor in arguments(name)]
    getattr(library, name)()(*tensors)
    ours = capsys.readouterr().out
    with li_plugins.suspended():
        getattr(library, name)()(*tensors)
    assert "out of bounds" in ours
    assert ours == capsys.readouterr().out


class Arrival:
    """A CUDA event that has not happened yet."""

    has_happened = False

    def query(self) -> bool:
        return self.has_happened

    def synchronize(self) -> None:
        self.has_happened = True


def test_bounds_are_reported_when_they_have_arrived(capsys: pytest.CaptureFixture[str]) -> None:
    from li_plugins_colpali import bounds

    loss, arrivals = library.ColbertLoss(norm_tol=0.25), [Arrival() for _ in range(4)]
    extremes = [torch.tensor(pair) for pair in ([0.0, 2.0], [-0.125, 1.125], [-0.5, 1.0], [0.0, 1.5])]
    try:
        for arrival, pair in zip(arrivals, extremes, strict=True):
            bounds._pending.append(bounds._Pending(arrival, pair, loss.norm_tol))
        bounds.report()
        assert not capsys.readouterr().out
        arrivals[0].has_happened = arrivals[2].has_happened = True
        bounds.report()  # in their order
        found = capsys.readouterr().out
        arrivals[1].has_happened = True
        bounds.report()
        found += capsys.readouterr().out
        bounds.report(wait=True)
        found += capsys.readouterr().out
    finally:
        bounds._pending.clear()
    for pair in extremes:
        loss._apply_normalization(pair, torch.ones(2))
    assert found == capsys.readouterr().out
    assert found.count("\n") == 3


def test_the_cpu_has_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LI_PLUGINS_COLPALI_BOUNDS", "later")
    library.ColbertLoss()(*(3 * tensor for tensor in arguments("ColbertLoss")))
    assert "out of bounds" in capsys.readouterr().out
