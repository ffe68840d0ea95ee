"""Training and retrieval: 32 steps of tiny real models, then the pages of each query, patched and unpatched."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
import transformers
from colpali_engine.loss import late_interaction_losses as library
from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor
from torch import Tensor

import li_plugins

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
STEPS, BATCH, PAGES = 32, 4, 8
LOSSES = {
    "colqwen2": "ColbertPairwiseCELoss",
    "colpali": "ColbertLoss",
    "colidefics3": "ColbertNegativeCELoss",
    "colmodernvbert": "ColbertPairwiseNegativeCELoss",
}

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5, reason="the configurations are those of transformers 5"
)


def collection() -> tuple[Tensor, Tensor, Tensor]:
    """Return pages, words beside them, and a query of three to six words for each."""
    generator = torch.Generator().manual_seed(1)
    side = tiny_models.SIDE
    pages = torch.randn(PAGES, 3, side, side, generator=generator)
    words = torch.randint(1, tiny_models.WORDS, (PAGES, 3), generator=generator)
    queries = torch.randint(1, tiny_models.WORDS, (PAGES, 6), generator=generator)
    queries[torch.arange(6) >= torch.randint(3, 7, (PAGES, 1), generator=generator)] = 0
    return pages, words, queries


def train_and_retrieve(name: str, device: str, precise: bool) -> tuple[Tensor, Tensor]:
    """Return the loss of every step and the scores ``[queries, pages]`` of the trained model."""
    tiny = tiny_models.make(name, precise)
    tiny.model.to(device)
    pages, words, queries = collection()
    pages = pages.double() if precise else pages
    loss = getattr(library, LOSSES[name])(temperature=0.1)
    loss = loss.double() if precise else loss
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=2e-3)
    found = []
    for step in range(STEPS):
        rows = slice(step * BATCH % PAGES, step * BATCH % PAGES + BATCH)
        arguments = [tiny.encode(queries[rows]), tiny.encode(words[rows], pages[rows])]
        if "Negative" in LOSSES[name]:
            negatives = torch.stack([arguments[1].roll(shift, 0) for shift in (1, 2)], 1)
            arguments.append(negatives.detach())
        optimizer.zero_grad()
        value = loss(*arguments)
        value.backward()
        optimizer.step()
        found.append(value.item())
    with torch.no_grad():
        texts = [vectors[mask] for vectors, mask in zip(tiny.encode(queries).cpu(), queries != 0, strict=True)]
        documents = list(tiny.encode(words, pages).cpu())
    scores = BaseVisualRetrieverProcessor.score_multi_vector(texts, documents, device=device)
    return torch.tensor(found), scores


@pytest.mark.parametrize("name", tiny_models.MODELS)
@pytest.mark.parametrize("device", DEVICES)
def test_losses_and_rankings_are_the_librarys(
    device: str, name: str, li_plugins_counts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, scores = train_and_retrieve(name, device, precise=False)
    assert li_plugins_counts.calls
    with li_plugins.suspended():
        theirs, library_scores = train_and_retrieve(name, device, precise=False)
        exact, _ = train_and_retrieve(name, device, precise=True)
    capsys.readouterr()  # the library prints scores that leave [0, 1]
    assert exact[-4:].mean() < 0.9 * exact[:4].mean(), "it does not learn, so that it tells nothing"
    drift, budget = (ours - exact).abs().max(), (theirs - exact).abs().max()
    assert drift <= max(2 * budget, 1e-5), f"drifts by {drift:.2g}, the library by {budget:.2g}"
    assert torch.equal(scores.argsort(1), library_scores.argsort(1))
    torch.testing.assert_close(scores, library_scores, rtol=1e-3, atol=1e-3)
