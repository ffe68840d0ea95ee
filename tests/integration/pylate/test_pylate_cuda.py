"""PyLate on a CUDA device: parity as on the CPU, and what CUDA's autocast and transfers add."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from score_cases import EMPTY, KINDS, MASKS, SHAPES, Kind, embeddings, odd, strided
from test_pylate_rank import assert_same, collection, deep

from li_plugins.testing.parity import assert_parity, call_unpatched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # PyLate would take them by itself; they mask with -inf where PyLate's own code multiplies by 0.
    pytest.mark.skipif(
        find_spec("flash_maxsim") is not None or find_spec("late_interaction_kernels") is not None,
        reason="the library to compare with is PyLate's own code, without other kernels",
    ),
]


def on_cuda(value: Any) -> Any:
    return value.cuda() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_masks_weigh_as_in_pylate(scores: ModuleType, kind: Kind, mask: str, dtype: torch.dtype) -> None:
    queries, leading = (3, 5), kind.leading(3, 4)
    masks = map(on_cuda, MASKS[mask](queries, (*leading, 7)))
    pair = [embeddings(*queries, 16, dtype=dtype).cuda(), embeddings(*leading, 7, 16, dtype=dtype).cuda()]
    found = assert_parity(kind.function(scores), pair, *masks, wanted=(True, True)).scores
    assert found.is_cuda


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(scores: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pair, mask = odd(shape, dtype)
    assert_parity(scores.colbert_scores, [side.cuda() for side in pair], None, mask.cuda(), wanted=(True, True))


@pytest.mark.parametrize(("queries", "documents"), EMPTY)
def test_empty_batches(scores: ModuleType, queries: int, documents: int) -> None:
    pair = [embeddings(queries, 4, 8).cuda(), embeddings(documents, 5, 8).cuda()]
    mask = torch.ones(documents, 5, dtype=torch.bool, device="cuda")
    found = assert_parity(scores.colbert_scores, pair, None, mask, wanted=(True, True)).scores
    assert found.shape == (queries, documents)
    candidates = [embeddings(3, 4, 8).cuda(), embeddings(3, 0, 5, 8).cuda()]
    assert assert_parity(scores.colbert_kd_scores, candidates, wanted=(True, True)).scores.shape == (3, 0)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_strides_do_not_matter(scores: ModuleType, kind: Kind) -> None:
    leading = kind.leading(3, 4)
    for on_cpu in strided(leading):
        pair = [torch.empty_strided(side.shape, side.stride(), device="cuda").copy_(side)
                if 0 not in side.stride() else side[..., :1, :].cuda().expand(side.shape)
                for side in on_cpu]  # fmt: skip
        mask = (torch.rand(pair[1].shape[-2], *leading, device="cuda") < 0.5).movedim(0, -1)
        assert_parity(kind.function(scores), pair, None, mask, wanted=(False, False))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_modes_without_gradients(scores: ModuleType, kind: Kind, mode: Any) -> None:
    pair = [embeddings(3, 4, 8).cuda().requires_grad_(), embeddings(*kind.leading(3, 5), 6, 8).cuda()]
    with mode():
        ours = kind.function(scores)(*pair)
        library = call_unpatched(kind.function(scores), *pair)
    assert (ours.requires_grad, ours.is_inference()) == (library.requires_grad, library.is_inference())
    torch.testing.assert_close(ours, library, rtol=0, atol=1e-5)


@pytest.mark.parametrize("convert", [np.asarray, torch.Tensor.tolist], ids=["numpy", "nested lists"])
def test_numpy_and_lists_stay_where_pylate_leaves_them(scores: ModuleType, convert: Any) -> None:
    pair = [convert(embeddings(3, 4, 8)), convert(embeddings(5, 6, 8))]
    ours, library = scores.colbert_scores(*pair), call_unpatched(scores.colbert_scores, *pair)
    assert ours.device == library.device
    torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)


def test_lists_of_tensors_on_the_device(scores: ModuleType) -> None:
    pair = [list(embeddings(3, 4, 8).cuda()), list(embeddings(5, 6, 8).cuda())]
    ours, library = scores.colbert_scores(*pair), call_unpatched(scores.colbert_scores, *pair)
    assert ours.device == library.device
    torch.testing.assert_close(ours, library, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sides", [(True, False), (False, True)], ids=["queries", "documents"])
def test_one_side_may_be_frozen(scores: ModuleType, sides: tuple[bool, bool]) -> None:
    pair = [embeddings(4, 32, 128).cuda(), embeddings(9, 180, 128).cuda()]
    assert_parity(scores.colbert_scores, pair, None, torch.rand(9, 180).cuda() < 0.8, wanted=sides)


def test_ragged_pairs_with_gradients(scores: ModuleType) -> None:
    queries = [embeddings(length, 64).cuda() for length in (3, 32, 1, 17)]
    documents = [embeddings(length, 64).cuda() for length in (180, 7, 63, 1)]
    assert_parity(scores.colbert_scores_pairwise, [queries, documents], wanted=(True, True))


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mask", ["none", "holes", "weights"])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_autocast_sums_in_float32(scores: ModuleType, kind: Kind, mask: str, lowered: torch.dtype) -> None:
    leading = kind.leading(4, 9)
    pair = [embeddings(4, 32, 128).cuda(), embeddings(*leading, 18, 128).cuda()]
    masks = map(on_cuda, MASKS[mask]((4, 32), (*leading, 18)))
    found = assert_parity(kind.function(scores), pair, *masks, wanted=(True, True), lowered=lowered)
    assert found.scores.dtype == torch.float32


def test_rerank_where_the_embeddings_are(rank: ModuleType) -> None:
    queries = [embeddings(32, 128).cuda() for _ in range(3)]
    documents = [[embeddings(length, 128).cuda() for length in (180, 20, 1, 77)] for _ in range(3)]
    ids = [["a", "b", "c", "d"]] * 3
    ours = rank.rerank(ids, queries, documents)
    library = call_unpatched(rank.rerank, ids, queries, documents)
    for mine, theirs in zip(ours, library, strict=True):
        assert [result["id"] for result in mine] == [result["id"] for result in theirs]
        torch.testing.assert_close([r["score"] for r in mine], [r["score"] for r in theirs], rtol=1e-6, atol=1e-5)


def test_rerank_sends_numpy_to_the_device(rank: ModuleType) -> None:
    queries = [embeddings(32, 128).numpy() for _ in range(2)]
    documents = [[embeddings(length, 128).numpy() for length in (180, 20)] for _ in range(2)]
    ours = rank.rerank([[1, 2]] * 2, queries, documents, device="cuda")
    library = call_unpatched(rank.rerank, [[1, 2]] * 2, queries, documents, device="cuda")
    assert [[result["id"] for result in row] for row in ours] == [[result["id"] for result in row] for row in library]


def test_rerank_between_devices(rank: ModuleType) -> None:
    ids, queries, candidates = collection()
    on_device = deep(torch.Tensor.cuda, queries), deep(torch.Tensor.cuda, candidates)
    assert_same(rank, ids, on_device[0], candidates)
    assert_same(rank, ids, *on_device, device="cpu")
    assert_same(rank, ids, queries, candidates, device="cuda:0")


def test_the_skiplists_mask_stays_on_the_device() -> None:
    from pylate.models import ColBERT

    ids, skiplist = torch.randint(0, 300, (7, 30)).cuda(), list(range(5, 37))
    ours = ColBERT.skiplist_mask(ids, skiplist)
    assert ours.device == ids.device
    assert torch.equal(ours, call_unpatched(ColBERT.skiplist_mask, ids, skiplist))


@pytest.mark.allow_fallback(reason="embeddings on two devices are the library's error")
def test_two_devices_are_the_librarys_error(scores: ModuleType) -> None:
    pair = embeddings(2, 3, 8).cuda(), embeddings(2, 3, 8)
    messages = []
    for call in (scores.colbert_scores, lambda *both: call_unpatched(scores.colbert_scores, *both)):
        with pytest.raises(RuntimeError) as raised:
            call(*pair)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("mask", ["none", "prefix", "both", "weights", "negative weights", "int64"])
@pytest.mark.parametrize("name", ["XTRScores", "XTRKDScores"])
def test_xtr_scores(name: str, mask: str) -> None:
    xtr = pytest.importorskip("pylate.scores.xtr", reason="PyLate has XTR scores since 1.5")
    masks = map(on_cuda, MASKS[mask]((3, 5), (3, 4, 7)))
    sides = [on_cuda(embeddings(3, 5, 16)), on_cuda(embeddings(3, 4, 7, 16))]
    # without signs others would be retrieved, so their sizes are no measure of what is summed
    assert assert_parity(getattr(xtr, name)(30), sides, *masks, wanted=(True, True), summed=0.6).scores.is_cuda
