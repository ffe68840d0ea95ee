"""Whoever holds one of the library's functions runs the patched one, also if they took it before it was patched."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from sentence_transformers.multi_vector_encoder import evaluation, losses
from sentence_transformers.multi_vector_encoder.scoring import (
    colbert_kd_scores,
    colbert_scores,
    colbert_scores_pairwise,
    mean_colbert_scores,
)
from sentence_transformers.util import maxsim, maxsim_pairwise, similarity_fct_name
from st_batches import embeddings
from test_st_lists import ragged

import li_plugins
from li_plugins.testing.parity import call_unpatched

pytestmark = pytest.mark.switches

HELD = partial(maxsim, length_normalize=True)
"""Made before anything is patched."""

TEXTS = ["fruits are healthy.", "heat of a wing, in flow", "a shock wave!", "the doctor shows trees"]


def short(counts: Any) -> dict[str, int]:
    """Calls by the last part of the name."""
    return {target.rpartition(":")[2]: count for target, count in counts.calls.items()}


def enable() -> None:
    li_plugins.enable("sentence-transformers", strict=True)


def test_by_value_imports_and_partials(li_plugins_counts: Any) -> None:
    enable()
    maxsim(ragged(3, 4), ragged(5))
    HELD(ragged(3, 4), ragged(5))
    maxsim_pairwise(ragged(3, 4), ragged(5, 2))
    colbert_scores(embeddings(2, 3, 8), embeddings(2, 2, 5, 8))
    mean_colbert_scores(embeddings(2, 3, 8), embeddings(2, 2, 5, 8))
    colbert_kd_scores(embeddings(2, 3, 8), embeddings(2, 2, 5, 8))
    colbert_scores_pairwise(embeddings(2, 3, 8), embeddings(2, 5, 8))
    assert short(li_plugins_counts) == {
        "maxsim": 2, "maxsim_pairwise": 2, "colbert_scores": 2, "colbert_kd_scores": 1,
    }  # fmt: skip
    assert not li_plugins_counts.declines


@pytest.mark.parametrize("name", ["maxsim", "meanmaxsim"])
def test_a_live_model(make_model: Callable[..., Any], name: str, li_plugins_counts: Any) -> None:
    model = make_model(similarity_fn_name=name)
    function, pairwise = model.similarity, model.similarity_pairwise
    queries, documents = model.encode_query(TEXTS), model.encode_document(TEXTS)
    library = function(queries, documents), pairwise(queries, documents), function(queries[0], documents)
    enable()
    ours = function(queries, documents), pairwise(queries, documents), function(queries[0], documents)
    for mine, theirs in zip(ours, library, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    assert short(li_plugins_counts) == {"maxsim": 2, "maxsim_pairwise": 1}
    assert not li_plugins_counts.declines


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MultiVectorMultipleNegativesRankingLoss", {"colbert_scores": 1}),
        ("CachedMultiVectorMultipleNegativesRankingLoss", {"colbert_scores": 1}),
        ("MultiVectorDistillKLDivLoss", {"colbert_kd_scores": 1}),
        ("MultiVectorMarginMSELoss", {"maxsim_pairwise": 2}),
    ],
)
def test_live_losses_with_their_defaults(
    make_model: Callable[..., Any], name: str, expected: dict[str, int], li_plugins_counts: Any
) -> None:
    model = make_model()
    loss = getattr(losses, name)(model)
    names = similarity_fct_name(loss.similarity_fct), loss.get_config_dict()
    batch = [model.preprocess(TEXTS, task=task) for task in ("query", "document", "document")]
    labels = torch.rand(4, 2) if "KLDiv" in name else torch.rand(4)
    library = loss([{**column} for column in batch], labels)
    enable()
    torch.testing.assert_close(loss([{**column} for column in batch], labels), library)
    assert short(li_plugins_counts) == expected
    assert (similarity_fct_name(loss.similarity_fct), loss.get_config_dict()) == names


def test_evaluators(make_model: Callable[..., Any], li_plugins_counts: Any) -> None:
    model = make_model()
    retrieval = evaluation.MultiVectorInformationRetrievalEvaluator(
        queries={"q": TEXTS[0], "r": TEXTS[1]},
        corpus=dict(zip("abcd", TEXTS, strict=True)),
        relevant_docs={"q": {"a"}, "r": {"c"}},
        write_csv=False,
    )
    reranking = evaluation.MultiVectorRerankingEvaluator(
        samples=[{"query": TEXTS[0], "positive": TEXTS[:1], "negative": TEXTS[1:]}], write_csv=False
    )
    triplets = evaluation.MultiVectorTripletEvaluator(TEXTS, TEXTS, TEXTS[::-1], write_csv=False)
    distillation = evaluation.MultiVectorDistillationEvaluator(
        TEXTS[:2], [TEXTS[:2], TEXTS[2:]], [[0.9, 0.1], [0.2, 0.8]], write_csv=False
    )
    evaluators = (retrieval, reranking, triplets, distillation)
    library = [evaluator(model) for evaluator in evaluators]
    assert not li_plugins_counts.calls
    enable()
    for evaluator, expected in zip(evaluators, library, strict=True):
        before = sum(li_plugins_counts.calls.values())
        assert evaluator(model) == pytest.approx(expected, abs=1e-5)
        assert sum(li_plugins_counts.calls.values()) > before, type(evaluator).__name__
    assert not li_plugins_counts.declines


def test_copies_and_pickles_made_while_patched(make_model: Callable[..., Any], li_plugins_counts: Any) -> None:
    model = make_model()
    loss = losses.MultiVectorDistillKLDivLoss(model)
    enable()
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert copy.deepcopy(loss).similarity_fct is pickle.loads(pickle.dumps(loss)).similarity_fct is colbert_kd_scores
    for twin in twins:
        twin.similarity(ragged(3), ragged(4, 5))
    assert short(li_plugins_counts) == {"maxsim": 2}
    li_plugins.disable_all()
    for twin in twins:
        twin.similarity(ragged(3), ragged(4, 5))
    assert short(li_plugins_counts) == {"maxsim": 2}


def test_threads_score_alike() -> None:
    enable()
    batches = [[ragged(3, 1, 4), ragged(5, 2)] for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: maxsim(*batch), batches))
    for batch, scores in zip(batches, found, strict=True):
        torch.testing.assert_close(scores, call_unpatched(maxsim, *batch))


def test_off_and_on_again(li_plugins_counts: Any) -> None:
    code = maxsim.__code__
    for _ in range(3):
        enable()
        assert maxsim.__code__ is not code
        assert maxsim.__name__ == "maxsim"
        maxsim(ragged(3), ragged(4, 5))
        li_plugins.disable_all()
        assert maxsim.__code__ is code
        maxsim(ragged(3), ragged(4, 5))
    assert short(li_plugins_counts) == {"maxsim": 3}
