"""The five losses: values and gradients, patched and unpatched."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
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


THROUGH_THE_FILTER = [options for options in OPTIONS if options["pos_aware_negative_filtering"]]


def named(options: dict[str, Any]) -> str:
    return " ".join(name for name, value in options.items() if value) or "plain"


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
    dtype = tensors[0].dtype
    # A loss sees rounded scores, each up to 1 or the number of query tokens, divided by its temperature.
    logits = (1 if loss.normalize_scores else tensors[0].shape[1]) / loss.temperature
    for kind, mine, his, truth in zip(("loss", *("gradient",) * 3), ours, theirs, exact, strict=False):
        assert mine.dtype == his.dtype
        size = truth.abs().max().item()
        if kind == "loss":
            magnitude = size + 2 * logits
        else:
            # What is left of 1 - p has the rounding of 1, in float32 in any softmax.
            magnitude = 4 * size * logits + torch.finfo(torch.float32).eps / torch.finfo(dtype).eps / loss.temperature
        verdict = judge(mine, truth, his, magnitude=magnitude, rounding=dtype, name=kind)
        assert verdict, f"{name} {options}: {verdict}"


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients(name: str, options: dict[str, bool], li_plugins_counts: Any) -> None:
    if ONE_NEGATIVE and name in NEGATIVE and options["use_smooth_max"]:
        pytest.skip("the library's own, as is its loss")
    assert_same(name, arguments(name), options)
    assert li_plugins_counts.calls


@pytest.mark.parametrize("options", THROUGH_THE_FILTER, ids=named)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_through_the_filter(name: str, options: dict[str, bool], li_plugins_counts: Any) -> None:
    """At a temperature of 0.02 the softmax gives next to nothing to a negative that was lowered."""
    if ONE_NEGATIVE and name in NEGATIVE and options["use_smooth_max"]:
        pytest.skip("the library's own, as is its loss")
    assert_same(name, arguments(name), {**options, "temperature": 1.0})
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
    """Documents that answer their queries: the loss differs from that of equal scores by more than is rounded."""
    tensors = [torch.nn.functional.normalize(tensor**4, dim=-1).bfloat16() for tensor in arguments(name)]
    tensors[1][:, :5] = tensors[0]
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


@pytest.mark.allow_fallback(reason="a maximum of the user's own is not ours")
@pytest.mark.parametrize("owner", ["loss", "class", "another loss"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_maximum_that_is_put_in_place_later_is_taken(name: str, owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = getattr(library, name)(use_smooth_max=True, normalize_scores=False, temperature=0.1)
    tensors, smooth_max = arguments(name), library.ColbertModule._smooth_max
    as_it_was = outcome(loss, tensors)

    def doubled(self: Any, scores: Tensor, dim: int) -> Tensor:
        return 2 * smooth_max(self, scores, dim)

    def with_another() -> list[Tensor]:
        with monkeypatch.context() as patch:  # to patch the library again, its methods have to be its own
            if owner == "class":
                patch.setattr(library.ColbertModule, "_smooth_max", doubled)
            else:
                another = library.ColbertLoss(tau=1.0)._smooth_max
                patch.setattr(loss, "_smooth_max", partial(doubled, loss) if owner == "loss" else another)
            return outcome(loss, tensors)

    ours = with_another()
    with li_plugins.suspended():
        theirs = with_another()
    for mine, his in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5)
    assert (ours[0] - as_it_was[0]).abs() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_losses_survive_fullgraph(name: str, li_plugins_counts: Any) -> None:
    if ONE_NEGATIVE and name in NEGATIVE:
        pytest.skip("the library's own")
    loss, tensors = getattr(library, name)(use_smooth_max=True, normalize_scores=False), arguments(name)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(outcome(compiled, tensors), outcome(loss, tensors))
    assert li_plugins_counts.calls


class OnDevice(Tensor):
    """Scores that say that they are on a CUDA device."""

    is_cuda = True


@pytest.mark.parametrize("owner", ["loss", "class"])
def test_a_normalization_that_is_put_in_place_later_is_taken(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from li_plugins_colpali import bounds

    loss, scores, lengths = library.ColbertLoss(), torch.rand(4, 4).as_subclass(OnDevice), torch.full((4,), 2)
    assert torch.equal(bounds.normalized(loss, scores, lengths), scores / 2)
    if owner == "class":
        monkeypatch.setattr(library.ColbertModule, "_apply_normalization", lambda self, scores, lengths: 3 * scores)
    else:
        loss._apply_normalization = lambda scores, lengths: 3 * scores
    assert torch.equal(bounds.normalized(loss, scores, lengths), 3 * scores)


@pytest.mark.allow_fallback(reason="the user named the backend")
@pytest.mark.parametrize("use_smooth_max", [False, True], ids=["hard", "smooth"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_users_backend_is_given_what_the_library_gives_it(
    name: str, use_smooth_max: bool, backend_calls: Any, li_plugins_counts: Any
) -> None:
    loss, tensors = getattr(library, name)(use_smooth_max=use_smooth_max), arguments(name)
    ours, given = outcome(loss, tensors), backend_calls[:]
    assert li_plugins_counts.declines
    backend_calls.clear()
    with li_plugins.suspended():
        theirs = outcome(loss, tensors)
    assert given == backend_calls
    assert bool(given) is (hasattr(library, "maxsim_kd") and not use_smooth_max)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.skipif(not hasattr(library, "maxsim_kd"), reason="releases before 0.3.17 write it out")
@pytest.mark.parametrize("name", NEGATIVE)
def test_a_dispatcher_of_the_users_own_scores_negatives_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    librarys = library.maxsim_kd
    monkeypatch.setattr(library, "maxsim_kd", lambda query, doc: librarys(query, doc) / 2)
    assert_same(name, arguments(name), {"temperature": 1.0})


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
