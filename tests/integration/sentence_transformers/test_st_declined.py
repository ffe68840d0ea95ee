"""What stays the library's to say and to answer: warnings, errors, and inputs that MaxSim has no meaning for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.util import similarity
from st_batches import KINDS, PUBLIC, Kind, embeddings, first_masked, forget_warnings, pair
from torch import Tensor

from li_plugins.testing.parity import call_unpatched, functions_seen, outcome


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_the_warning_of_documents_without_tokens_stays(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    batch = pair(kind)
    mask = first_masked(tuple(batch[1].shape[:-1]))
    said = []
    for call in (kind.function, lambda *arguments: call_unpatched(kind.function, *arguments)):
        forget_warnings()
        caplog.clear()
        with caplog.at_level("WARNING", logger="sentence_transformers"):
            call(*batch, None, mask)
        said.append([record.message for record in caplog.records if "scoreable token" in record.message])
    assert said[0] == said[1]
    assert len(said[0]) == 1
    forget_warnings()
    caplog.clear()
    kind.function(*batch, None, torch.ones_like(mask))
    assert not caplog.records


def q(*shape: int) -> Tensor:
    return torch.ones(*shape)


DECLINED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "no queries": ("maxsim", (q(0, 3, 8), q(2, 3, 8))),
    "no documents": ("maxsim", (q(2, 3, 8), [])),
    "no tokens": ("maxsim", (q(2, 3, 8), q(2, 0, 8))),
    "no tokens in a chunk": ("_maxsim_score_documents", (q(2, 3, 8), q(2, 0, 8), None, None)),
    "no tokens in pairs": ("_maxsim_score_pairs", (q(2, 3, 8), q(2, 0, 8), None, None)),
    "other dimension": ("maxsim", (q(2, 3, 8), q(2, 3, 4))),
    "a dimension that einsum broadcasts": ("_maxsim_score_documents", (q(2, 3, 1), q(2, 3, 4), None, None)),
    "pairs that einsum broadcasts": ("_maxsim_score_pairs", (q(1, 3, 4), q(2, 3, 4), None, None)),
    "other dtype": ("maxsim", (q(2, 3, 8), q(2, 3, 8).half())),
    "int8": ("maxsim", (q(2, 3, 8).to(torch.int8), q(2, 3, 8).to(torch.int8))),
    "rank 1": ("maxsim", (q(8), q(2, 3, 8))),
    "rank 4": ("maxsim", (q(2, 3, 8), q(2, 2, 3, 8))),
    "a number": ("maxsim", (3, q(2, 3, 8))),
    "sparse": ("maxsim", (q(2, 3, 8).to_sparse(), q(2, 3, 8))),
    "a mask of other tokens": ("maxsim", (q(2, 3, 8), q(2, 3, 8), None, q(2, 4))),
    "a mask of one token": ("maxsim", (q(2, 3, 8), q(2, 3, 8), None, q(2, 1))),
    "a mask of more queries": ("maxsim", (q(1, 3, 8), q(2, 3, 8), q(4, 3))),
    "a mask of rank 1": ("maxsim", (q(2, 3, 8), q(2, 4, 8), q(3), None)),
    "a mask that is a list": ("maxsim", (q(2, 3, 8), q(2, 4, 8), [q(3), q(2)], None)),
    "a mask that is an array": ("maxsim", (q(2, 3, 8), q(2, 4, 8), np.ones((2, 3)), None)),
    "a mask that is a number": ("maxsim", (q(2, 3, 8), q(2, 3, 8), 1.0)),
    "a float64 mask": ("maxsim", (q(2, 3, 8), q(2, 3, 8), q(2, 3).double() / 3)),
    "a budget that is a text": ("maxsim", (q(2, 3, 8), q(2, 3, 8), None, None, "1")),
    "a budget of one pair that is a text": ("maxsim_pairwise", ([q(3, 8)], [q(4, 8)], None, None, "1")),
    "other numbers of pairs": ("maxsim_pairwise", (q(2, 3, 8), q(3, 3, 8))),
    "a mask of one pair": ("maxsim_pairwise", (q(2, 3, 8), q(2, 4, 8), None, q(4))),
    "groups of rank 3": ("colbert_scores", (q(2, 3, 8), q(2, 3, 8))),
    "no groups": ("colbert_scores", (q(2, 3, 8), q(0, 2, 3, 8))),
    "empty groups": ("colbert_scores", (q(2, 3, 8), q(2, 0, 3, 8))),
    "a mask of fewer groups": ("colbert_scores", (q(2, 3, 8), q(2, 2, 3, 8), None, q(1, 2, 3))),
    "sparse groups": ("colbert_scores", (q(2, 3, 8), q(2, 2, 3, 8).to_sparse())),
    "a mask of groups that is an array": ("colbert_scores", (q(2, 3, 8), q(2, 2, 3, 8), None, np.ones((2, 2, 3)))),
    "no candidates": ("colbert_kd_scores", (q(2, 3, 8), q(2, 0, 3, 8))),
    "candidates of other queries": ("colbert_kd_scores", (q(2, 3, 8), q(3, 2, 3, 8))),
    "candidates of rank 3": ("colbert_kd_scores", (q(2, 3, 8), q(2, 3, 8))),
    "sparse candidates": ("colbert_kd_scores", (q(2, 3, 8), q(2, 2, 3, 8).to_sparse())),
    "a mask of fewer candidates": ("colbert_kd_scores", (q(2, 3, 8), q(2, 2, 3, 8), None, q(2, 1, 3))),
    "a mask of more candidates": ("colbert_kd_scores", (q(2, 3, 8), q(2, 2, 3, 8), None, q(2, 3, 3))),
    "a mask of candidates that is a list": ("colbert_kd_scores", (q(2, 3, 8), q(2, 2, 3, 8), q(2, 3).tolist())),
}


@pytest.mark.allow_fallback(reason="what MaxSim has no meaning for is the library's to answer")
@pytest.mark.parametrize("case", DECLINED)
def test_the_library_answers_what_is_not_ours(case: str, li_plugins_counts: Any) -> None:
    name, arguments = DECLINED[case]
    function = Kind(name, lambda *_: ()).function
    ours = outcome(lambda: function(*arguments))
    library = call_unpatched(outcome, lambda: function(*arguments))
    if isinstance(library, Tensor):
        assert (ours.dtype, ours.device, ours.shape) == (library.dtype, library.device, library.shape)
        torch.testing.assert_close(ours, library)
    else:
        assert ours == library
    assert any(target.endswith(f":{name}") for target in li_plugins_counts.declines)


@pytest.mark.allow_fallback(reason="a mask with a gradient is the library's to differentiate")
def test_a_mask_that_requires_a_gradient_gets_it() -> None:
    mask = torch.rand(3, 4, requires_grad=True)
    similarity.maxsim(embeddings(3, 4, 8), embeddings(5, 6, 8), mask).sum().backward()
    assert mask.grad is not None
    assert mask.grad.any()


@pytest.mark.allow_fallback(reason="subclasses may give einsum a meaning of their own")
def test_subclasses_reach_the_library() -> None:
    sides = embeddings(2, 3, 8), embeddings(2, 3, 8)
    seen = functions_seen(lambda traced: similarity.maxsim(sides[0].as_subclass(traced), sides[1]))
    assert "einsum" in seen


@pytest.mark.allow_fallback(reason="the user's own function comes first")
@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("_maxsim_score_documents", "maxsim"),
        ("_maxsim_score_documents", "colbert_scores"),
        ("_maxsim_score_pairs", "maxsim_pairwise"),
        ("_maxsim_score_pairs", "colbert_kd_scores"),
    ],
)
def test_a_user_who_replaces_a_function_is_heard(name: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = next(kind for kind in PUBLIC if kind.name == called)
    original = getattr(similarity, name)
    monkeypatch.setattr(similarity, name, lambda *arguments: original(*arguments).fill_(7.0))
    assert kind.function(*pair(kind)).unique().tolist() == [7]
