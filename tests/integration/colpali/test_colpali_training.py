"""Training and retrieval: 32 steps of tiny real models, then the pages of each query, patched and unpatched."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from colpali_engine.loss import late_interaction_losses as library
from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor
from packaging.version import Version
from torch import Tensor

import li_plugins
from li_plugins.testing import training

NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "colpali" and Version(torch.__version__) < Version("2.6"),
            reason="transformers makes PaliGemma's masks from torch 2.6 on",
        ),
    )
    for name in tiny_models.MODELS
]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
BATCH, PAGES = 4, 8
LOSSES = {
    "colqwen2": "ColbertPairwiseCELoss",
    "colpali": "ColbertLoss",
    "colidefics3": "ColbertNegativeCELoss",
    "colmodernvbert": "ColbertPairwiseNegativeCELoss",
}

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5, reason="the configurations are those of transformers 5"
)


@pytest.fixture(autouse=True)
def _convolutions_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's patches are convolved, on a GPU in TF32 unless told: an error of the encoder's own."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def collection() -> tuple[Tensor, Tensor, Tensor]:
    """Return pages, words beside them, and a query of three to six words for each."""
    generator = torch.Generator().manual_seed(1)
    side = tiny_models.SIDE
    pages = torch.randn(PAGES, 3, side, side, generator=generator)
    words = torch.randint(1, tiny_models.WORDS, (PAGES, 3), generator=generator)
    queries = torch.randint(1, tiny_models.WORDS, (PAGES, 6), generator=generator)
    queries[torch.arange(6) >= torch.randint(3, 7, (PAGES, 1), generator=generator)] = 0
    return pages, words, queries


def make_learner(name: str, device: str, precise: bool) -> training.Learner:
    tiny = tiny_models.make(name, precise)
    tiny.model.to(device)
    pages, words, queries = collection()
    pages = pages.double() if precise else pages
    loss = getattr(library, LOSSES[name])(temperature=0.1)
    loss = loss.double() if precise else loss

    def loss_of(step: int) -> Tensor:
        rows = slice(step * BATCH % PAGES, step * BATCH % PAGES + BATCH)
        arguments = [tiny.encode(queries[rows]), tiny.encode(words[rows], pages[rows])]
        if "Negative" in LOSSES[name]:
            negatives = torch.stack([arguments[1].roll(shift, 0) for shift in (1, 2)], 1)
            arguments.append(negatives.detach())
        return loss(*arguments)

    return training.Learner(tiny.model, loss_of)


def retrieve(name: str, device: str, model: torch.nn.Module) -> Tensor:
    """Return the scores ``[queries, pages]`` of a trained model."""
    encode = tiny_models.make(name)._replace(model=model).encode
    pages, words, queries = collection()
    with torch.no_grad():
        texts = [vectors[mask] for vectors, mask in zip(encode(queries).cpu(), queries != 0, strict=True)]
        documents = list(encode(words, pages).cpu())
    return BaseVisualRetrieverProcessor.score_multi_vector(texts, documents, device=device)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
def test_losses_and_rankings_are_the_librarys(
    device: str, name: str, li_plugins_counts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    courses = training.assert_same_course(partial(make_learner, name, device), lr=2e-3)
    scores = retrieve(name, device, courses.ours)
    assert li_plugins_counts.calls
    with li_plugins.suspended():
        library_scores = retrieve(name, device, courses.ours)
        their_scores = retrieve(name, device, courses.library)
    capsys.readouterr()  # the library prints scores that leave [0, 1]
    assert torch.equal(scores.argsort(1), library_scores.argsort(1))
    torch.testing.assert_close(scores, library_scores, rtol=1e-6, atol=1e-6)
    assert torch.equal(scores.argmax(1), their_scores.argmax(1))
    torch.testing.assert_close(scores, their_scores, rtol=1e-2, atol=1e-2)
