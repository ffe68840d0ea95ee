"""Scores of stored documents against MaxSim in float64, and against the loops of colbert-ai, written out."""

from __future__ import annotations

import math

import pytest
import refusal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from li_plugins.ops import (
    code_maxsim,
    decompress,
    dispatch,
    explain_code_maxsim,
    explain_residual_maxsim,
    residual_maxsim,
)
from li_plugins.ops.residual import blocked
from li_plugins.testing.oracle import judge

CENTROIDS, WIDTH = 7, 16


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", {"cpu": 9 * WIDTH})


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(end: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(end, shape, generator=torch.Generator().manual_seed(seed))


def index(lengths: list[int], nbits: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Return codes, residuals, centroids, bucket weights and offsets; a few codes go on behind the last document."""
    total = sum(lengths) + 3
    return [
        integers(CENTROIDS, total, seed=seed).int(),
        integers(256, total, WIDTH * nbits // 8, seed=seed + 1).to(torch.uint8),
        some(CENTROIDS, WIDTH, seed=seed + 2, dtype=dtype),
        some(2**nbits, seed=seed + 3, dtype=dtype).sort().values,
        torch.tensor([0, *lengths]).cumsum(0),
    ]


def drawn_pairs(queries: int, documents: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    return integers(queries, count, seed=seed), integers(documents, count, seed=seed + 1)


def exact(queries: Tensor, stored: list[Tensor], nbits: int, normalized: bool, least: float) -> Tensor:
    codes, residuals, centroids, weights, offsets = stored
    tokens = decompress(codes, residuals, centroids, weights, nbits=nbits, normalized=normalized).double()
    columns = []
    for begin, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False):
        similarities = queries.double() @ tokens[begin:end].T
        floor = torch.full((*similarities.shape[:2], 1), least, dtype=torch.float64)
        columns.append(torch.cat([similarities, floor], 2).amax(2).sum(1))
    return torch.stack(columns, 1) if columns else torch.zeros(len(queries), 0)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("kernel")
def test_scores(nbits: int, normalized: bool, dtype: torch.dtype) -> None:
    queries, stored = some(3, 4, WIDTH, dtype=dtype), index([5, 1, 20, 7, 2], nbits, dtype)
    truth = exact(queries, stored, nbits, normalized, -math.inf)
    scores = residual_maxsim(queries, *stored, nbits=nbits, normalized=normalized)
    assert scores.dtype is dtype
    verdict = judge(scores, truth, magnitude=4 * truth.abs().max(), name="scores")
    assert verdict, verdict
    pairs = drawn_pairs(3, 5, 11, seed=5)
    chosen = residual_maxsim(queries, *stored, nbits=nbits, normalized=normalized, pairs=pairs)
    verdict = judge(chosen, truth[pairs], magnitude=4 * truth.abs().max(), name="pairs")
    assert verdict, verdict


@settings(max_examples=80)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=6),
    queries=st.integers(0, 3),
    length=st.integers(0, 4),
    nbits=st.sampled_from([1, 2, 4, 8]),
    least=st.sampled_from([-math.inf, -9999.0, 0.0, 0.7]),
    count=st.integers(0, 9),
    seed=st.integers(0, 2**20),
    kernel=st.sampled_from(["blocked", "reference"]),
)
def test_any_shape(
    lengths: list[int], queries: int, length: int, nbits: int, least: float, count: int, seed: int, kernel: str
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LI_PLUGINS_BACKEND", kernel)
        dispatch.reset()
        tokens = some(queries, length, WIDTH, seed=seed, dtype=torch.float64)
        stored = index(lengths, nbits, torch.float64, seed)
        truth = exact(tokens, stored, nbits, True, least)
        found = residual_maxsim(tokens, *stored, nbits=nbits, least=least)
        torch.testing.assert_close(found, truth.double().view(queries, len(lengths)))
        if queries and lengths:
            pairs = drawn_pairs(queries, len(lengths), count, seed)
            torch.testing.assert_close(
                residual_maxsim(tokens, *stored, nbits=nbits, least=least, pairs=pairs), found[pairs]
            )


def filtered(scores: Tensor, codes: Tensor, offsets: Tensor, kept: Tensor, least: float) -> list[float]:
    """``filter_pids.cpp`` of colbert-ai for one query, its float additions in their order."""
    totals = []
    for begin, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False):
        best = [torch.tensor(least)] * scores.shape[1]
        for code in codes[begin:end].tolist():
            if kept[code]:
                best = [torch.maximum(old, new) for old, new in zip(best, scores[code], strict=True)]
        total = torch.tensor(0.0)
        for maximum in best:
            total = total + maximum
        totals.append(total.item())
    return totals


@pytest.mark.parametrize("least", [-9999.0, 0.0])
@pytest.mark.usefixtures("kernel")
def test_centroid_scores_add_up_as_in_the_library(least: float) -> None:
    lengths = [5, 0, 1, 30, 7, 2]
    codes, _, _, _, offsets = index(lengths, 2)
    scores, kept = some(3, CENTROIDS, 32, seed=9), integers(2, 3, CENTROIDS, seed=4).bool()
    expected = torch.tensor([filtered(scores[a], codes, offsets, kept[a], least) for a in range(3)])
    assert torch.equal(code_maxsim(scores, codes, offsets, kept=kept, least=least), expected)
    everything = torch.ones(CENTROIDS, dtype=torch.bool)
    unfiltered = torch.tensor([filtered(scores[a], codes, offsets, everything, least) for a in range(3)])
    assert torch.equal(code_maxsim(scores, codes, offsets, least=least), unfiltered)
    pairs = drawn_pairs(3, len(lengths), 20, seed=2)
    assert torch.equal(code_maxsim(scores, codes, offsets, kept=kept, least=least, pairs=pairs), expected[pairs])


@pytest.mark.usefixtures("kernel")
def test_half_precision_is_added_in_float32() -> None:
    codes, _, _, _, offsets = index([5, 9], 2)
    scores = some(2, CENTROIDS, 32, seed=9, dtype=torch.float16)
    assert torch.equal(code_maxsim(scores, codes, offsets), code_maxsim(scores.float(), codes, offsets))


@pytest.mark.usefixtures("kernel")
def test_nan_stays_where_it_is() -> None:
    codes, residuals, centroids, weights, offsets = index([4, 4, 4], 2)
    codes[:12] = torch.tensor([0, 1, 2, 3, 0, 1, 6, 3, 0, 1, 2, 3])
    centroids[6] = math.nan
    queries = some(2, 3, WIDTH)
    found = residual_maxsim(queries, codes, residuals, centroids, weights, offsets, nbits=2)
    assert found.isnan().tolist() == [[False, True, False]] * 2
    scores = queries @ centroids.T
    assert code_maxsim(scores.mT, codes, offsets).isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.usefixtures("kernel")
def test_strided_inputs() -> None:
    queries, stored = some(4, 3, WIDTH).transpose(0, 1), index([5, 3], 2)
    expected = residual_maxsim(queries.contiguous(), *stored, nbits=2)
    stored[0] = stored[0].repeat_interleave(2)[::2]
    stored[1] = stored[1].T.contiguous().T
    torch.testing.assert_close(residual_maxsim(queries, *stored, nbits=2), expected)


@pytest.mark.parametrize("listed", [False, True])
def test_torch_accepts_the_ops(listed: bool) -> None:
    queries, (codes, residuals, centroids, weights, offsets) = some(2, 3, WIDTH), index([5, 0, 3], 2)
    pairs = (torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 0, 1])) if listed else (None, None)
    ops, scores = torch.ops.li_plugins, (queries @ centroids.T).mT
    torch.library.opcheck(
        ops.residual_maxsim.default,
        (codes, offsets, *pairs, -9999.0, queries, residuals, centroids, weights, 2, True, torch.float32),
    )
    torch.library.opcheck(ops.code_maxsim.default, (codes, offsets, *pairs, 0.0, scores, scores.amax(2) > 0))


def test_the_plans_say_why() -> None:
    queries, stored = some(2, 3, WIDTH), index([5, 3], 2)
    plan = explain_residual_maxsim(queries, *stored, nbits=2)
    assert plan.kernel.name == "blocked"
    assert plan.rejected == (("triton", "runs on cuda, not on cpu"), ("reference", "ranks after blocked"))
    assert explain_code_maxsim(some(2, CENTROIDS, 3), stored[0], stored[4]).kernel.name == "blocked"


QUERIES, STORED = torch.zeros(2, 3, WIDTH), index([5, 3], 2)
SCORES, PAIR = torch.zeros(2, CENTROIDS, 3), torch.zeros(1, dtype=torch.int64)


def stored_but(place: int, value: Tensor) -> list[Tensor]:
    return [value if number == place else part for number, part in enumerate(STORED)]


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (lambda: residual_maxsim(QUERIES[0], *STORED, nbits=2), "queries has 3 dimensions"),
        (lambda: residual_maxsim(QUERIES[..., :8], *STORED, nbits=2), "queries and centroids have one width"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=4), "bucket_weights has 16 entries"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, out_dtype=torch.int32), "out_dtype is"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, pairs=PAIR), "pairs is (pair_queries, pair_documents)"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, pairs=(None, None)), "pairs[0] is a tensor"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2.0), "nbits is 1, 2, 4 or 8"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, least=None), "least is a number"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, normalized=1), "normalized is a bool"),
        (lambda: code_maxsim(SCORES, STORED[0], STORED[4], least="0"), "least is a number"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, pairs=(PAIR, PAIR + 2)), "pairs[1] lie in [0, 2)"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, pairs=(PAIR - 1, PAIR)), "pairs[0] lie in [0, 2)"),
        (lambda: residual_maxsim(QUERIES, *STORED, nbits=2, pairs=(PAIR, PAIR.int())), "pairs[1] has dtype int64"),
        (
            lambda: residual_maxsim(QUERIES, *stored_but(4, torch.tensor([0, 5, 99])), nbits=2),
            "document_offsets rise, from 0 to at most the number of codes, 11",
        ),
        (lambda: residual_maxsim(QUERIES, *stored_but(4, torch.tensor([0, 5, 4])), nbits=2), "document_offsets rise"),
        (lambda: residual_maxsim(QUERIES, *stored_but(4, torch.tensor([])), nbits=2), "document_offsets has dtype"),
        (lambda: code_maxsim(SCORES, STORED[0], PAIR[:0]), "document_offsets has at least one entry"),
        (lambda: code_maxsim(SCORES[0], STORED[0], STORED[4]), "centroid_scores has 3 dimensions"),
        (lambda: code_maxsim(SCORES, STORED[0].float(), STORED[4]), "codes has dtype int32, int64"),
        (lambda: code_maxsim(SCORES, STORED[0], STORED[4], kept=SCORES[:, :, 0]), "kept has dtype bool"),
        (lambda: code_maxsim(SCORES, STORED[0], STORED[4], kept=SCORES[:1, :, 0] > 0), "kept has 2 entries"),
        (lambda: code_maxsim(SCORES, STORED[0], STORED[4], kept=SCORES[:, :2, 0] > 0), "kept and centroid_scores"),
    ],
)
def test_what_has_no_meaning_is_refused(call, asked: str) -> None:
    refusal.check(call, asked)


@pytest.mark.usefixtures("kernel")
def test_a_code_without_a_centroid_is_an_error() -> None:
    with pytest.raises(IndexError):
        residual_maxsim(QUERIES, *stored_but(0, STORED[0] + CENTROIDS), nbits=2)
    with pytest.raises(IndexError):
        code_maxsim(SCORES, STORED[0] + CENTROIDS, STORED[4])
