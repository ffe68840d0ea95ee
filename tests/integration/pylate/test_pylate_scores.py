"""PyLate's four score functions: what they return and what flows back, patched and unpatched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from score_cases import EMPTY, KINDS, MASKS, SHAPES, Kind, embeddings, lengths, odd, ragged, strided
from torch import Tensor

from li_plugins.testing.parity import assert_parity, call_unpatched

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BOTH_GRADS = (True, True)

# Masks, shapes, dtypes


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_masks_weigh_as_in_pylate(scores: ModuleType, kind: Kind, mask: str, dtype: torch.dtype) -> None:
    queries, leading = (3, 5), kind.leading(3, 4)
    masks = MASKS[mask](queries, (*leading, 7))
    pair = [embeddings(*queries, 16, dtype=dtype), embeddings(*leading, 7, 16, dtype=dtype)]
    assert_parity(kind.function(scores), pair, *masks, wanted=BOTH_GRADS)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_masked_token_beats_negative_similarities(scores: ModuleType, kind: Kind) -> None:
    queries, documents = torch.ones(2, 3, 8), -torch.ones(*kind.leading(2, 4), 5, 8)
    mask = torch.ones(*kind.leading(2, 4), 5)
    mask[..., 0, 2] = 0
    found = assert_parity(kind.function(scores), [queries, documents], None, mask, wanted=BOTH_GRADS).scores
    assert found.unique().tolist() == [-24, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(scores: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pair, mask = odd(shape, dtype)
    assert_parity(scores.colbert_scores, pair, None, mask, wanted=BOTH_GRADS)


@pytest.mark.parametrize(("queries", "documents"), EMPTY)
def test_empty_batches(scores: ModuleType, queries: int, documents: int) -> None:
    pair = [embeddings(queries, 4, 8), embeddings(documents, 5, 8)]
    mask = torch.ones(documents, 5, dtype=torch.bool)
    assert assert_parity(scores.colbert_scores, pair, None, mask, wanted=BOTH_GRADS).scores.shape == (
        queries,
        documents,
    )
    candidates = [embeddings(3, 4, 8), embeddings(3, 0, 5, 8)]
    assert assert_parity(scores.colbert_kd_scores, candidates, wanted=BOTH_GRADS).scores.shape == (3, 0)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_queries_without_tokens_score_zero(scores: ModuleType, kind: Kind) -> None:
    pair = [embeddings(3, 0, 8), embeddings(*kind.leading(3, 4), 5, 8)]
    assert not assert_parity(kind.function(scores), pair).scores.any()


@pytest.mark.parametrize(
    ("embedding", "mask", "expected"),
    [
        (torch.bfloat16, torch.bool, torch.bfloat16),
        (torch.bfloat16, torch.int64, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float16, torch.uint8, torch.float16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
    ids=str,
)
def test_the_dtype_is_torchs_promotion(
    scores: ModuleType, embedding: torch.dtype, mask: torch.dtype, expected: torch.dtype
) -> None:
    pair = [embeddings(2, 3, 8, dtype=embedding), embeddings(3, 4, 8, dtype=embedding)]
    for masks in ((torch.ones(2, 3, dtype=mask), None), (None, torch.ones(3, 4, dtype=mask))):
        assert assert_parity(scores.colbert_scores, pair, *masks).scores.dtype == expected


# Inputs


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("convert", [np.asarray, Tensor.tolist, list], ids=["numpy", "nested lists", "list of tensors"])
def test_what_pylate_converts_is_converted(scores: ModuleType, kind: Kind, convert: Callable[..., Any]) -> None:
    pair = [convert(embeddings(3, 4, 8)), convert(embeddings(*kind.leading(3, 2), 5, 8))]
    masks = (np.ones((3, 4), dtype=np.float32), np.ones((*kind.leading(3, 2), 5), dtype=bool))
    ours = kind.function(scores)(*pair, *masks)
    library = call_unpatched(kind.function(scores), *pair, *masks)
    torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_strides_do_not_matter(scores: ModuleType, kind: Kind) -> None:
    leading = kind.leading(3, 4)
    for pair in strided(leading):
        mask = (torch.rand(pair[1].shape[-2], *leading) < 0.5).movedim(0, -1)
        ours = kind.function(scores)(*pair, None, mask)
        library = call_unpatched(kind.function(scores), *pair, None, mask)
        torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)


def test_a_mask_of_size_one_stands_for_all(scores: ModuleType) -> None:
    pair = [embeddings(3, 4, 8), embeddings(5, 6, 8)]
    for masks in (
        (torch.rand(1, 4), torch.rand(5, 1)),
        (torch.rand(3, 1), torch.rand(1, 6)),
        (torch.rand(1, 1), torch.rand(1, 1)),
    ):
        assert_parity(scores.colbert_scores, pair, *masks, wanted=BOTH_GRADS)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
def test_a_gradient_on_one_side_only(scores: ModuleType, kind: Kind, wanted: tuple[bool, bool]) -> None:
    pair = [embeddings(3, 4, 8), embeddings(*kind.leading(3, 2), 5, 8)]
    assert_parity(kind.function(scores), pair, None, lengths((*kind.leading(3, 2), 5)), wanted=wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(scores: ModuleType, mode: Callable[[], Any]) -> None:
    pair = [embeddings(3, 4, 8).requires_grad_(), embeddings(5, 6, 8)]
    with mode():
        ours = scores.colbert_scores(*pair)
        library = call_unpatched(scores.colbert_scores, *pair)
    assert (ours.requires_grad, ours.is_inference()) == (library.requires_grad, library.is_inference())
    torch.testing.assert_close(ours, library)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("mask", ["none", "holes", "weights"])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_autocast(scores: ModuleType, kind: Kind, mask: str, given: torch.dtype, lowered: torch.dtype) -> None:
    leading = kind.leading(3, 4)
    pair = [embeddings(3, 5, 16, dtype=given), embeddings(*leading, 7, 16, dtype=given)]
    masks = MASKS[mask]((3, 5), (*leading, 7))
    assert_parity(kind.function(scores), pair, *masks, wanted=BOTH_GRADS, lowered=lowered)


def test_nan_goes_where_pylate_lets_it(scores: ModuleType) -> None:
    queries, documents = embeddings(3, 4, 8), embeddings(5, 6, 8)
    documents[1, 2, 3] = queries[2, 0, 0] = torch.nan
    ours = scores.colbert_scores(queries, documents)
    torch.testing.assert_close(ours, call_unpatched(scores.colbert_scores, queries, documents), equal_nan=True)
    assert ours.isnan().sum() == 3 + 5 - 1


# Pairs


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_pairs_of_ragged_lists_with_gradients(scores: ModuleType, dtype: torch.dtype) -> None:
    pair = [ragged(3, 1, 32, 7, dtype=dtype), ragged(5, 180, 1, 33, dtype=dtype)]
    found = assert_parity(scores.colbert_scores_pairwise, pair, wanted=BOTH_GRADS)
    assert found.scores.shape == (4,)
    assert len(found.grads) == 8


@pytest.mark.parametrize("counts", [(4, 4), (4, 2), (2, 4), (1, 1)])
def test_pairs_of_padded_batches_end_with_the_shorter(scores: ModuleType, counts: tuple[int, int]) -> None:
    pair = [embeddings(counts[0], 5, 16), embeddings(counts[1], 9, 16)]
    found = assert_parity(scores.colbert_scores_pairwise, pair, wanted=BOTH_GRADS)
    assert found.scores.shape == (min(counts),)


def test_pairs_of_everything_that_pylate_iterates(scores: ModuleType) -> None:
    queries, documents = ragged(3, 0, 4), ragged(5, 6, 2, 9)
    arrays = np.empty(4, dtype=object)
    arrays[:] = [document.numpy() for document in documents]
    batch = embeddings(3, 4, 16)
    for pair in (
        (queries, documents),
        (tuple(queries), documents),
        (queries, [document.numpy() for document in documents]),
        (queries, [document.tolist() for document in documents]),
        (queries, arrays),
        (batch, documents),
        (batch.numpy(), arrays),
        (batch, batch.transpose(0, 1)),
    ):
        ours = scores.colbert_scores_pairwise(*pair)
        library = call_unpatched(scores.colbert_scores_pairwise, *pair)
        torch.testing.assert_close(ours, library, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
def test_pairs_under_autocast(scores: ModuleType, lowered: torch.dtype) -> None:
    pair = [ragged(3, 1, 32), ragged(5, 180, 1)]
    assert_parity(scores.colbert_scores_pairwise, pair, wanted=BOTH_GRADS, lowered=lowered)


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16], ids=str)
def test_stored_pairs_under_autocast(scores: ModuleType, given: torch.dtype, lowered: torch.dtype) -> None:
    """Autocast refuses to concatenate what has the other 16-bit dtype."""
    pair = [[text.to(given) for text in ragged(3, 1, 32)], [text.to(given) for text in ragged(5, 180, 1)]]
    with torch.autocast("cpu", dtype=lowered):
        ours = scores.colbert_scores_pairwise(*pair)
        library = call_unpatched(scores.colbert_scores_pairwise, *pair)
    assert ours.dtype is library.dtype is lowered
    torch.testing.assert_close(ours, library, rtol=0.02, atol=0.02)


def test_arrays_that_descend(scores: ModuleType) -> None:
    """PyLate converts the rows of an array, which torch takes, where it would not take the array."""
    batch = np.random.default_rng(0).standard_normal((3, 4, 8))[::-1]
    ours = scores.colbert_scores_pairwise(batch, batch)
    torch.testing.assert_close(ours, call_unpatched(scores.colbert_scores_pairwise, batch, batch))
    groups = Kind("ColBERTScores", lambda *_: ()).function(scores)
    pair = embeddings(2, 3, 8), embeddings(3, 2, 4, 8)
    mask = (np.random.default_rng(0).random((3, 2, 4)) < 0.7).astype(np.float32)[:, ::-1]
    torch.testing.assert_close(groups(*pair, documents_mask=mask), call_unpatched(groups, *pair, documents_mask=mask))


# Memory


MEMORY = """
import json
from pathlib import Path
import torch, li_plugins
from pylate.scores import colbert_scores

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

def peak_of(queries, documents):
    sides = [side.clone().requires_grad_() for side in (queries, documents)]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    colbert_scores(*sides).sum().backward()
    return status("VmHWM") - before

queries, documents = torch.randn(64, 32, 16), torch.randn(256, 256, 16)  # 0.5 GiB of similarities
peaks = []
for enable in (li_plugins.enable_all, li_plugins.disable_all):
    enable()
    peak_of(queries[:4], documents[:4])  # what threads and libraries allocate once
    peaks.append(peak_of(queries, documents))
print(json.dumps(peaks))
"""


@pytest.mark.switches
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is read from Linux's /proc")
def test_memory_does_not_grow_with_the_grid() -> None:
    """PyLate's own peak shows that the measurement sees what it is for."""
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True, timeout=280)
    ours, library = json.loads(done.stdout.splitlines()[-1])
    assert library > 500
    assert ours < 64
