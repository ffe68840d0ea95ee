"""Training: 32 steps of a small real model take the same course, patched and unpatched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pylate import losses

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


def batches(model: Any, columns: list[list[str]]) -> list[list[dict[str, torch.Tensor]]]:
    """As PyLate's collator pads: to the configured lengths, so that most document tokens are masked."""
    found = []
    for start in range(0, len(QUERIES), BATCH):
        rows = slice(start, start + BATCH)
        queries = model.tokenize(QUERIES[rows], is_query=True, pad=True)
        found.append([queries, *(model.tokenize(column[rows], is_query=False, pad=True) for column in columns)])
    return found


def course_of(name: str, model: Any) -> list[tuple[Any, Any]]:
    if name != "Distillation":
        return [(features, None) for features in batches(model, [POSITIVES, NEGATIVES])]
    # PyLate stretches the scores of a query to [0, 1]: two ways would have no gradient
    labels = torch.tensor([[0.9, 0.1, 0.6, 0.3], [0.7, 0.4, 0.2, 0.5], [0.8, 0.3, 0.1, 0.6], [0.6, 0.5, 0.4, 0.1]])
    course = []
    for queries, *columns in batches(model, [POSITIVES, *(POSITIVES[by:] + POSITIVES[:by] for by in (3, 5, 6))]):
        # n ways of a query follow each other
        ways = {key: torch.stack([column[key] for column in columns], 1).flatten(0, 1) for key in columns[0]}
        course.append(([queries, ways], labels))
    return course


def moved(value: Any, device: str) -> Any:
    """Return tensors on a device, those in lists and dictionaries too."""
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", ["Contrastive", "CachedContrastive", "Distillation"])
@pytest.mark.parametrize("expansion", [True, False], ids=["expanded queries", "masked queries"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_course_of_training_is_pylates(
    make_model: Callable[..., Any], device: str, name: str, expansion: bool, li_plugins_counts: Any
) -> None:
    options = {"mini_batch_size": 2} if name == "CachedContrastive" else {}

    def make(precise: bool) -> training.Learner:
        model = make_model(do_query_expansion=expansion).to(device)
        course = [(moved(features, device), moved(labels, device)) for features, labels in course_of(name, model)]
        if precise:
            model = model.double()
            course = [(features, labels.double() if labels is not None else None) for features, labels in course]
        model.train()
        loss = getattr(losses, name)(model=model, **options)

        def loss_of(step: int) -> torch.Tensor:
            features, labels = course[step % len(course)]
            return loss([{**column} for column in features], labels)

        return training.Learner(model, loss_of)

    training.assert_same_course(make)
    assert li_plugins_counts.calls


def test_cached_contrastive_propagates_the_sum_as_pylate_does(make_model: Callable[..., Any]) -> None:
    """PyLate's CachedContrastive back-propagates the sum over the batch, whatever ``size_average`` says."""

    def gradient(loss_name: str) -> torch.Tensor:
        model = make_model()
        (features, _), *_ = course_of(loss_name, model)
        getattr(losses, loss_name)(model=model)(features).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    ours, plain = gradient("CachedContrastive"), gradient("Contrastive")
    torch.testing.assert_close(ours, BATCH * plain, rtol=1e-3, atol=1e-6)
    with li_plugins.suspended():
        torch.testing.assert_close(ours, gradient("CachedContrastive"), rtol=1e-3, atol=1e-6)
