"""Training: 32 steps of a small real model take the same course, patched and unpatched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers.multi_vector_encoder import losses
from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_scores

import li_plugins
from li_plugins.testing import training

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
BATCH = 4
QUERIES = [
    "fruits are healthy", "heat of a wing", "jet pressure", "sweet apples", "doctor advice", "shock wave theory",
    "trees grow", "boundary layer flow",
]  # fmt: skip
POSITIVES = [
    "apples, and berries, are good for health.", "the transfer of heat (on a plate).", "supersonic flow: a jet!",
    "red; yellow; sweet.", "people eat what the doctor shows.", "a wave, a shock, an experiment.",
    "green trees are growing more and more.", "the layer on a wing.",
]  # fmt: skip
NEGATIVES = POSITIVES[3:] + POSITIVES[:3]

Course = list[tuple[list[dict[str, Any]], torch.Tensor]]

LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ranking": ("MultiVectorMultipleNegativesRankingLoss", {}),
    "ranking by the mean": ("MultiVectorMultipleNegativesRankingLoss", {"similarity_fct": mean_colbert_scores}),
    "cached ranking": ("CachedMultiVectorMultipleNegativesRankingLoss", {"mini_batch_size": 2}),
    "distillation": ("MultiVectorDistillKLDivLoss", {}),
    "margins": ("MultiVectorMarginMSELoss", {}),
}


def course_of(model: Any, labels: torch.Tensor) -> Course:
    """Return batches as the library's collator makes them: each column padded to its longest text."""
    found = []
    for start in range(0, len(QUERIES), BATCH):
        rows = slice(start, start + BATCH)
        columns = (QUERIES[rows], "query"), (POSITIVES[rows], "document"), (NEGATIVES[rows], "document")
        features = [{**model.preprocess(texts, task=task), "task": task} for texts, task in columns]
        found.append(([moved(column, model.device) for column in features], labels.to(model.device)))
    return found


def moved(column: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in column.items()}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_course_of_training_is_the_librarys(
    make_model: Callable[..., Any], device: str, name: str, li_plugins_counts: Any
) -> None:
    kind, options = LOSSES[name]
    labels = torch.tensor([3.0, 2.0, 4.0, 1.0])
    if kind == "MultiVectorDistillKLDivLoss":
        labels = torch.tensor([[9.0, 1.0], [7.0, 4.0], [8.0, 3.0], [6.0, 2.0]])

    def make(precise: bool) -> training.Learner:
        model = make_model().to(device)
        model = model.double() if precise else model
        course = course_of(model, labels.double() if precise else labels)
        model.train()
        loss = getattr(losses, kind)(model, **options)

        def loss_of(step: int) -> torch.Tensor:
            features, targets = course[step % len(course)]
            return loss([{**column} for column in features], targets)

        return training.Learner(model, loss_of)

    training.assert_same_course(make)
    assert li_plugins_counts.calls
    assert not li_plugins_counts.declines


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradients_of_one_step(make_model: Callable[..., Any], name: str) -> None:
    kind, options = LOSSES[name]
    labels = torch.rand(BATCH, 2) if kind == "MultiVectorDistillKLDivLoss" else torch.rand(BATCH)

    def gradient() -> torch.Tensor:
        model = make_model()
        features, targets = course_of(model, labels)[0]
        getattr(losses, kind)(model, **options)(features, targets).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    ours = gradient()
    with li_plugins.suspended():
        library = gradient()
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, library, rtol=1e-3, atol=1e-5 * library.abs().max().item())
