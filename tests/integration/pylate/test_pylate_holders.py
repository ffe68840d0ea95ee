"""Whoever holds one of PyLate's functions runs the patched one, also if they took it before it was patched."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from pylate import evaluation, losses
from pylate.scores import SimilarityFunction, colbert_kd_scores, colbert_scores, colbert_scores_pairwise

import li_plugins
from li_plugins.testing.parity import assert_parity, call_unpatched

pytestmark = pytest.mark.switches

FUNCTIONS = (colbert_scores, colbert_kd_scores, colbert_scores_pairwise)
PAIR = {
    "colbert_scores": ((3, 4, 16), (5, 6, 16)),
    "colbert_kd_scores": ((3, 4, 16), (3, 5, 6, 16)),
    "colbert_scores_pairwise": ((3, 4, 16), (3, 6, 16)),
}
HELD = partial(colbert_scores, documents_mask=None)
"""Made before anything is patched."""


def pair(function: Callable[..., Any]) -> list[torch.Tensor]:
    return [torch.randn(shape) for shape in PAIR[function.__name__]]


def short(counts: Any) -> dict[str, int]:
    """Calls by the last part of the name, those of the mask left out."""
    calls = {target.rpartition(":")[2]: count for target, count in counts.calls.items()}
    return {name: count for name, count in calls.items() if "skiplist" not in name}


def modules() -> Iterator[ModuleType]:
    yield from [module for name, module in list(sys.modules.items()) if name.startswith("pylate") and module]


def test_every_binding_is_the_same_function() -> None:
    """A copy of a function under the library's name would be patched for nobody."""
    bound = {
        (module.__name__, name): value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__name__ in PAIR and value.__module__.startswith("pylate")
    }
    assert len(bound) >= 9
    assert {id(value) for value in bound.values()} == {id(function) for function in FUNCTIONS}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_by_value_import(function: Callable[..., Any], li_plugins_counts: Any) -> None:
    li_plugins.enable("pylate")
    function(*pair(function))
    assert short(li_plugins_counts) == {function.__name__: 1}


def test_partials_and_the_similarity_enum(li_plugins_counts: Any) -> None:
    similarity = SimilarityFunction.to_similarity_fn("MaxSim")
    pairwise = SimilarityFunction.to_similarity_pairwise_fn("MaxSim")
    li_plugins.enable("pylate")
    HELD(*pair(colbert_scores))
    similarity(*pair(colbert_scores))
    pairwise(*pair(colbert_scores_pairwise))
    assert short(li_plugins_counts) == {"colbert_scores": 2, "colbert_scores_pairwise": 1}


def test_a_live_model(make_model: Callable[..., Any], li_plugins_counts: Any) -> None:
    model = make_model()
    similarity, pairwise = model.similarity, model.similarity_pairwise
    li_plugins.enable("pylate")
    for function in (similarity, model.similarity):
        function(*pair(colbert_scores))
    for function in (pairwise, model.similarity_pairwise):
        function(*pair(colbert_scores_pairwise))
    assert short(li_plugins_counts) == {"colbert_scores": 2, "colbert_scores_pairwise": 2}


def features(model: Any, documents: int = 1) -> list[dict[str, torch.Tensor]]:
    queries = model.tokenize(["fruits are healthy", "heat of a wing"], is_query=True, pad=True)
    columns = ["fruits are good for health.", "the boundary layer, and heat.", "a wave!", "eat apples."]
    return [queries, *(model.tokenize(columns[i : i + 2], is_query=False, pad=True) for i in range(documents))]


@pytest.mark.parametrize("loss_name", ["Contrastive", "CachedContrastive", "Distillation"])
def test_live_losses_with_their_defaults(
    make_model: Callable[..., Any], loss_name: str, li_plugins_counts: Any
) -> None:
    model = make_model()
    loss = getattr(losses, loss_name)(model=model)
    labels = torch.rand(2, 2) if loss_name == "Distillation" else None
    batch = features(model, 2)
    if loss_name == "Distillation":
        documents = {key: torch.cat([column[key] for column in batch[1:]]) for key in batch[1]}
        batch = [batch[0], documents]
    li_plugins.enable("pylate")
    loss(batch, labels)
    calls = short(li_plugins_counts)
    assert sum(calls.values()) >= 1
    if loss_name == "Distillation":
        assert calls == {"colbert_kd_scores": 1}
    elif hasattr(sys.modules[colbert_scores.__module__], "ColBERTScores"):
        assert set(calls) == {"ColBERTScores.__call__"}
    else:
        assert set(calls) == {"colbert_scores"}


def test_evaluators(make_model: Callable[..., Any], li_plugins_counts: Any, tmp_path: Any) -> None:
    model = make_model()
    texts = ["fruits are healthy.", "heat of a wing, in flow"]
    triplets = evaluation.ColBERTTripletEvaluator(texts, texts, texts[::-1], write_csv=False)
    distillation = evaluation.ColBERTDistillationEvaluator(
        texts, [texts, texts], [[0.9, 0.1], [0.2, 0.8]], write_csv=False
    )
    retrieval = evaluation.PyLateInformationRetrievalEvaluator(
        queries={"q": texts[0]},
        corpus={"a": texts[0], "b": texts[1]},
        relevant_docs={"q": {"a"}},
        write_csv=False,
        accuracy_at_k=[1],
        precision_recall_at_k=[1],
        mrr_at_k=[1],
        ndcg_at_k=[1],
        map_at_k=[1],
    )
    evaluators = (triplets, distillation, retrieval)
    library = [evaluator(model) for evaluator in evaluators]
    assert not li_plugins_counts.calls
    li_plugins.enable("pylate")
    for evaluator, expected in zip(evaluators, library, strict=True):
        assert evaluator(model) == pytest.approx(expected, abs=1e-5)
    assert short(li_plugins_counts) == {"colbert_scores_pairwise": 2, "colbert_kd_scores": 1, "colbert_scores": 1}


def test_a_model_and_a_loss_are_copied_and_pickled_while_patched(
    make_model: Callable[..., Any], li_plugins_counts: Any
) -> None:
    model = make_model()
    loss = losses.Distillation(model=model)
    li_plugins.enable("pylate")
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    metrics = [copy.deepcopy(loss).score_metric, pickle.loads(pickle.dumps(loss)).score_metric]
    assert all(metric is colbert_kd_scores for metric in metrics)
    for twin in copies:
        twin.similarity(*pair(colbert_scores))
    assert short(li_plugins_counts) == {"colbert_scores": 2}
    li_plugins.disable_all()
    for twin in copies:
        twin.similarity(*pair(colbert_scores))
    assert short(li_plugins_counts) == {"colbert_scores": 2}


def test_threads_score_alike() -> None:
    li_plugins.enable("pylate")
    arguments = [[torch.randn(3, 4, 16), torch.randn(5, 6, 16)] for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda both: colbert_scores(*both), arguments))
    for both, scores in zip(arguments, found, strict=True):
        torch.testing.assert_close(scores, call_unpatched(colbert_scores, *both))


def test_off_and_on_again(li_plugins_counts: Any) -> None:
    code = colbert_scores.__code__
    for _ in range(3):
        li_plugins.enable("pylate")
        assert colbert_scores.__code__ is not code
        assert_parity(colbert_scores, pair(colbert_scores))
        assert li_plugins.original(colbert_scores).__code__ is code
        li_plugins.disable_all()
        assert colbert_scores.__code__ is code
        colbert_scores(*pair(colbert_scores))
    assert short(li_plugins_counts) == {"colbert_scores": 3}
