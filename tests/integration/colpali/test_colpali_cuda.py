"""colpali-engine on a CUDA device: parity as on the CPU, and what CUDA's autocast, transfers and waits add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from colpali_engine.compression.token_pooling import HierarchicalTokenPooler
from colpali_engine.loss import late_interaction_losses as library
from test_colpali_losses import LOSSES, NEGATIVE, ONE_NEGATIVE, OPTIONS, arguments, assert_same, named, outcome
from test_colpali_scoring import assert_same as assert_same_scores
from test_colpali_scoring import texts
from torch import Tensor

import li_plugins
from li_plugins.testing.parity import assert_parity
from li_plugins.testing.waiting import waits_for_nothing

DEVICE = "cuda"
HALVES = [torch.float32, torch.bfloat16, torch.float16]
BOTH = (True, True)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def embeddings(*shape: int, dtype: torch.dtype = torch.float32, padding: int = 0) -> Tensor:
    """Unit vectors; of every second text the last are padding."""
    tokens = torch.nn.functional.normalize(torch.randn(*shape), dim=-1)
    if padding:
        tokens[1::2, ..., -padding:, :] = 0
    return tokens.to(dtype).to(DEVICE)


@pytest.fixture(params=["maxsim_inbatch", "maxsim_kd"])
def function(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    maxsim: Any = pytest.importorskip("colpali_engine.utils.maxsim", reason="the seam came with 0.3.17")
    return getattr(maxsim, request.param)


def candidates(function: Callable[..., Tensor], queries: int, documents: int) -> tuple[int, ...]:
    return (queries, documents) if function.__name__ == "maxsim_kd" else (documents,)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
@pytest.mark.parametrize(("queries", "tokens", "width"), [(5, 9, 16), (32, 1030, 128), (1030, 32, 128), (1, 1, 8)])
def test_the_seam(function: Callable[..., Tensor], queries: int, tokens: int, width: int, dtype: torch.dtype) -> None:
    pair = [
        embeddings(2, queries, width, dtype=dtype),
        embeddings(*candidates(function, 2, 3), tokens, width, dtype=dtype, padding=min(1, tokens - 1)),
    ]
    assert assert_parity(function, pair, wanted=BOTH).scores.is_cuda is (DEVICE == "cuda")


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
def test_a_gradient_on_one_side(function: Callable[..., Tensor], wanted: tuple[bool, bool]) -> None:
    assert_parity(function, [embeddings(4, 32, 128), embeddings(*candidates(function, 4, 9), 180, 128)], wanted=wanted)


def test_padding_wins_over_negative_similarities(function: Callable[..., Tensor]) -> None:
    documents = -torch.ones(*candidates(function, 2, 3), 3, 8, device=DEVICE)
    documents[..., 0, 2, :] = 0
    found = assert_parity(function, [torch.ones(2, 5, 8, device=DEVICE), documents]).scores
    assert found.unique().tolist() == [-40, 0]


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_autocast_sums_in_float32(function: Callable[..., Tensor], lowered: torch.dtype) -> None:
    pair = [embeddings(3, 5, 16), embeddings(*candidates(function, 3, 4), 9, 16)]
    found = assert_parity(function, pair, lowered=lowered, wanted=BOTH)
    assert found.scores.dtype is (torch.float32 if DEVICE == "cuda" else lowered)


@pytest.mark.skipif(not LOSSES, reason="0.3.10 has other losses")
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(name: str, options: dict[str, bool], li_plugins_counts: Any) -> None:
    if ONE_NEGATIVE and name in NEGATIVE and options["use_smooth_max"]:
        pytest.skip("the library's own, as is its loss")
    assert_same(name, [tensor.to(DEVICE) for tensor in arguments(name)], options)
    assert li_plugins_counts.calls


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ColbertSigmoidLoss"])
def test_documents_of_other_ranks(name: str) -> None:
    if name in NEGATIVE and ONE_NEGATIVE:
        pytest.skip("an offset of positives came with 0.3.13")
    assert_same(name, [tensor.to(DEVICE) for tensor in arguments(name, documents=12)], {}, offset=4)


@pytest.mark.parametrize("name", LOSSES)
def test_bounds_reported_later_change_no_value(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if ONE_NEGATIVE and name in NEGATIVE:
        pytest.skip("the loss is the library's own")
    from li_plugins_colpali import bounds

    loss, tensors = getattr(library, name)().to(DEVICE), [3 * tensor.to(DEVICE) for tensor in arguments(name)]
    found = []
    for when in ("now", "later"):
        monkeypatch.setenv("LI_PLUGINS_COLPALI_BOUNDS", when)
        values = outcome(loss, tensors)
        bounds.report(wait=True)
        found.append((values, capsys.readouterr().out))
    with li_plugins.suspended():
        outcome(loss, tensors)
    (now, said), (later, said_later) = found
    assert said.count("\n") == capsys.readouterr().out.count("\n")
    torch.testing.assert_close(now, later, rtol=1e-6, atol=1e-6)
    assert said == said_later
    assert "out of bounds" in said


@pytest.mark.parametrize("name", ["ColbertLoss", "ColbertNegativeCELoss"])
def test_a_step_that_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in LOSSES or ONE_NEGATIVE:
        pytest.skip("the loss is the library's own")
    monkeypatch.setenv("LI_PLUGINS_COLPALI_BOUNDS", "later")
    loss = getattr(library, name)().to(DEVICE)
    leaves = [tensor.to(DEVICE).requires_grad_() for tensor in arguments(name)]
    loss(*leaves).backward()  # what compiles and is pinned once
    torch.cuda.synchronize()
    with waits_for_nothing():
        loss(*leaves).backward()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("home", ["cpu", DEVICE])
@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_ragged_pages_are_scored_on_the_device(batch_size: int, home: str, dtype: torch.dtype) -> None:
    sides = [
        [text.to(home) for text in texts(lengths, width=128, dtype=dtype)]
        for lengths in ([32, 1, 17, 40], [1030, 2, 300, 1, 767, 300])
    ]
    assert_same_scores(*sides, batch_size=batch_size, device=DEVICE)
    assert_same_scores(*sides, batch_size=batch_size)


def test_a_page_on_the_device_is_pooled_where_it_is() -> None:
    page = torch.nn.functional.normalize(torch.rand(96, 128), dim=-1).to(DEVICE)
    ours = HierarchicalTokenPooler().pool_embeddings([page], pool_factor=3)[0]
    with li_plugins.suspended():
        theirs = HierarchicalTokenPooler().pool_embeddings([page], pool_factor=3)[0]
    assert ours.device == page.device
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.allow_fallback(reason="embeddings on two devices are the library's error")
def test_two_devices_are_the_librarys_error(function: Callable[..., Tensor]) -> None:
    pair = embeddings(2, 3, 8), embeddings(*candidates(function, 2, 2), 3, 8).cpu()

    def complaint() -> str:
        with pytest.raises(RuntimeError) as raised:
            function(*pair)
        return str(raised.value)

    ours = complaint()
    with li_plugins.suspended():
        assert ours == complaint()
