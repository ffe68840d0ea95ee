"""sentence-transformers on a CUDA device: parity as on the CPU, and what CUDA's autocast, transfers and waits add."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers.multi_vector_encoder.scoring import xtr
from sentence_transformers.util import similarity
from st_batches import BOTH_GRADS, HALVES, KINDS, MASKS, PUBLIC, Kind, embeddings, pair, prefix
from test_st_lists import LENGTHS, padded, ragged

from li_plugins.testing.parity import assert_parity

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def moved(value: Any) -> Any:
    if isinstance(value, list):
        return [moved(item) for item in value]
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_masks_mean_what_the_library_says(kind: Kind, mask: str, dtype: torch.dtype) -> None:
    batch = pair(kind, dtype)
    masks = map(moved, MASKS[mask](tuple(batch[0].shape[:-1]), tuple(batch[1].shape[:-1])))
    found = assert_parity(kind.function, moved(batch), *masks, wanted=BOTH_GRADS).scores
    assert found.dtype is torch.float32
    assert found.device.type == DEVICE
    assert mask != "all masked" or found.unique().tolist() == [-1e9]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("queries", "documents", "query_tokens", "document_tokens", "width"),
    [(2, 5, 32, 180, 128), (5, 7, 17, 63, 48), (2, 2, 257, 33, 320), (1, 127, 64, 1, 24), (4, 2, 1, 1271, 72)],
)
def test_odd_shapes(
    queries: int, documents: int, query_tokens: int, document_tokens: int, width: int, dtype: torch.dtype
) -> None:
    batch = [
        embeddings(queries, query_tokens, width, dtype=dtype),
        embeddings(documents, document_tokens, width, dtype=dtype),
    ]
    mask = moved(prefix((documents, document_tokens)))
    assert_parity(similarity.maxsim, moved(batch), None, mask, wanted=BOTH_GRADS)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_gradient_on_one_side_only(kind: Kind, wanted: tuple[bool, bool]) -> None:
    batch = pair(kind)
    mask = moved(prefix(tuple(batch[1].shape[:-1])))
    assert_parity(kind.function, moved(batch), None, mask, wanted=wanted)


@pytest.mark.parametrize("kind", PUBLIC, ids=repr)
def test_zero_rows_are_padding_without_a_mask(kind: Kind) -> None:
    queries, documents = torch.ones(3, 4, 8), -torch.ones(*kind.leading(3, 2), 5, 8)
    documents[..., 2:, :], queries[1, 2:], documents[0] = 0, 0, 0
    found = assert_parity(kind.function, moved([queries, documents]), wanted=BOTH_GRADS).scores
    assert found.min() == -1e9
    assert_parity(kind.function, moved([queries, documents]), length_normalize=True)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
def test_ragged_lists_with_gradients(name: str, lengths: str, dtype: torch.dtype) -> None:
    queries, documents = LENGTHS[lengths]
    batch = moved([ragged(*queries, dtype=dtype), ragged(*documents, dtype=dtype)])
    assert assert_parity(getattr(similarity, name), batch, wanted=BOTH_GRADS).scores.device.type == DEVICE


@pytest.mark.parametrize("name", ["maxsim", "maxsim_pairwise"])
def test_lists_are_scored_on_the_device_that_is_named(name: str) -> None:
    batch = [ragged(3, 32, 7), ragged(180, 1, 64)]
    for sides in (batch, [moved(batch[0]), batch[1]]):
        assert_parity(getattr(similarity, name), sides, device=DEVICE)


def test_a_padded_batch_against_a_list() -> None:
    mask = moved(torch.rand(3, 6))
    assert_parity(similarity.maxsim, moved([padded(4, 1, 6), ragged(5, 2, 9, 1)]), mask, wanted=BOTH_GRADS)
    assert_parity(similarity.maxsim, moved([ragged(5, 2, 9, 1), padded(4, 1, 6)]), wanted=BOTH_GRADS)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["none", "holes", "weights"])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_autocast(kind: Kind, mask: str, lowered: torch.dtype) -> None:
    batch = pair(kind)
    masks = map(moved, MASKS[mask]((3, 5), tuple(batch[1].shape[:-1])))
    assert_parity(kind.function, moved(batch), *masks, wanted=BOTH_GRADS, lowered=lowered)


def test_a_compiled_similarity() -> None:
    batch, mask = moved([embeddings(3, 32, 128), embeddings(4, 180, 128)]), moved(prefix((4, 180)))
    compiled = torch.compile(lambda *sides: 2 * similarity.maxsim(*sides, None, mask), fullgraph=True)
    torch.testing.assert_close(compiled(*batch), 2 * similarity.maxsim(*batch, None, mask))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["xtr_scores", "xtr_kd_scores"])
def test_xtr_scores(name: str, mask: str, dtype: torch.dtype) -> None:
    sides = [embeddings(3, 5, 16, dtype=dtype), embeddings(3, 4, 7, 16, dtype=dtype)]
    masks = map(moved, MASKS[mask]((3, 5), (3, 4, 7)))
    found = assert_parity(getattr(xtr, name), moved(sides), *masks, wanted=BOTH_GRADS).scores
    assert found.device.type == DEVICE
