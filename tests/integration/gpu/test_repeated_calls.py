"""Calls by their recipe on a GPU: the same bits as the long way, whatever is in the tensors and wherever they lie."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from near_triton_cases import random_near
from stored_triton_cases import random_code, random_residual
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import MaskRule, dispatch, maxsim, maxsim_packed, near_documents, recipes, residual, smooth_maxsim
from li_plugins.ops.maxsim import tuning_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

Case = Callable[[torch.Generator], tuple[Any, list[Tensor], dict[str, Any]]]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def _fresh_plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recipes, "RECORDED", 2)
    dispatch.reset()
    yield
    dispatch.reset()


def normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, generator=random, device="cuda"), dim=-1)


def dense(documents: tuple[int, ...], rule: MaskRule = MaskRule.NONE, width: int = 128, queries: int = 5) -> Case:
    def case(random: torch.Generator) -> tuple[Any, list[Tensor], dict[str, Any]]:
        keywords: dict[str, Any] = {"mask_rule": rule, "out_dtype": torch.float32}
        if rule.name != "NONE":
            keywords["document_mask"] = torch.rand(documents, generator=random, device="cuda") < 0.7
            keywords["query_weights"] = torch.rand((queries, 32), generator=random, device="cuda")
        else:
            lengths = torch.randint(0, documents[-1] + 1, documents[:-1], generator=random, device="cuda")
            keywords["document_lengths"] = lengths
        return maxsim, [normal(random, queries, 32, width), normal(random, *documents, width)], keywords

    return case


def packed(random: torch.Generator) -> tuple[Any, list[Tensor], dict[str, Any]]:
    offsets = [torch.tensor([0, *torch.tensor(lengths).cumsum(0)], device="cuda") for lengths in ((7, 32), (9, 50, 30))]
    tensors = [normal(random, 39, 128), normal(random, 89, 128)]
    lengths = {"max_query_length": 32, "max_document_length": 50}
    return (
        lambda queries, documents, **keywords: maxsim_packed(queries, documents, *offsets, **keywords),
        tensors,
        {
            **lengths,
            "floor": torch.rand(3, generator=random, device="cuda") < 0.5,
        },
    )


def smooth(random: torch.Generator) -> tuple[Any, list[Tensor], dict[str, Any]]:
    return smooth_maxsim, [normal(random, 4, 32, 128), normal(random, 6, 180, 128)], {"tau": 0.1}


CASES: dict[str, Case] = {
    "cross": dense((9, 180)),
    "many queries": dense((9, 180), queries=40),
    "candidates": dense((5, 4, 70)),
    "zero": dense((9, 180), MaskRule.ZERO),
    "exclude": dense((9, 180), MaskRule.EXCLUDE),
    "fill of candidates": dense((5, 4, 70), MaskRule.FILL(-9999.0)),
    "48 dimensions": dense((9, 180), width=48),
    "packed": packed,
    "smooth": smooth,
}


def run(case: Case, seed: int, dtype: torch.dtype, wants: str) -> list[Tensor]:
    """Return the scores and the gradients that are wanted."""
    random = torch.Generator("cuda").manual_seed(seed)
    function, embeddings, keywords = case(random)
    leaves = [side.to(dtype).requires_grad_(letter in wants) for side, letter in zip(embeddings, "qd", strict=True)]
    scores = function(*leaves, **keywords)
    if not wants:
        return [scores]
    grad = torch.randn(scores.shape, generator=random, device="cuda").to(scores.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [scores.detach(), *torch.autograd.grad(scores, wanted, grad)]


def the_long_way(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "_is_here", lambda device: False)
        return call()


@pytest.mark.parametrize("wants", ["", "q", "d", "qd"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, wants: str) -> None:
    followed = []
    again = recipes.Recipe.again
    monkeypatch.setattr(recipes.Recipe, "again", lambda *given: followed.append(1) or again(*given))
    for seed in range(5):
        expected = the_long_way(monkeypatch, lambda seed=seed: run(CASES[name], seed, dtype, wants))
        found = run(CASES[name], seed, dtype, wants)
        for mine, other in zip(found, expected, strict=True):
            assert mine.dtype is other.dtype
            assert torch.equal(mine, other)
    # torch adds up or casts some gradients of the smooth maximum
    least = 3 if not wants or name in ("packed", "smooth") else 6
    assert len(followed) >= least, [kind.reason for kind in recipes._kinds.values()]
    served = dispatch.counters()
    assert sum(served.values()) == 10 * (2 if wants else 1)


def test_a_gradient_that_is_not_contiguous() -> None:
    queries, documents = (
        normal(torch.Generator("cuda"), *shape).requires_grad_() for shape in ((4, 32, 128), (9, 60, 128))
    )
    for _ in range(4):
        first = torch.autograd.grad(maxsim(queries, documents).sum(), (queries, documents))
        second = torch.autograd.grad(maxsim(queries, documents), (queries, documents), torch.ones(4, 9, device="cuda"))
        assert all(map(torch.equal, first, second))


def test_saved_tensors_of_another_layout() -> None:
    random = torch.Generator("cuda").manual_seed(0)
    queries = normal(random, 4, 32, 128).bfloat16().requires_grad_()
    wide = normal(random, 9, 60, 256).bfloat16().requires_grad_()
    grad = torch.randn(4, 9, generator=random, device="cuda").bfloat16()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(maxsim(queries, wide[..., :128]), (queries, wide), grad)

    expected, *_ = (gradients() for _ in range(4))
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
        for _ in range(4):
            assert all(map(torch.equal, gradients(), expected))


def test_tensors_that_begin_unevenly() -> None:
    random = torch.Generator("cuda").manual_seed(0)
    queries, documents = normal(random, 4, 32, 128).bfloat16(), normal(random, 9, 60, 128).bfloat16()
    memory = torch.empty(documents.numel() + 3, dtype=torch.bfloat16, device="cuda")
    uneven = memory[3:].view(documents.shape).copy_(documents)
    expected = maxsim(queries, documents)
    for _ in range(4):
        assert torch.equal(maxsim(queries, documents), expected)
        assert torch.equal(maxsim(queries, uneven), expected)


def test_another_stream_and_a_graph() -> None:
    random = torch.Generator("cuda").manual_seed(0)
    queries, documents = normal(random, 4, 32, 128).bfloat16(), normal(random, 900, 180, 128).bfloat16()
    expected = maxsim(queries, documents)
    for _ in range(3):
        maxsim(queries, documents)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # what it reads is written on that stream, just before
        found = maxsim(queries * 2, documents)
        graph = torch.cuda.CUDAGraph()
    stream.synchronize()
    assert torch.equal(found, expected * 2)
    with torch.cuda.graph(graph):
        kept = maxsim(queries, documents)
    queries.mul_(-1)
    graph.replay()
    assert torch.equal(kept, maxsim(queries, documents))
    assert not torch.equal(kept, expected)


def test_other_blocks_make_other_recipes() -> None:
    random = torch.Generator("cuda").manual_seed(0)
    queries, documents = normal(random, 4, 32, 128).bfloat16(), normal(random, 9, 60, 128).bfloat16()
    for _ in range(3):
        maxsim(queries, documents)
    (kind,) = recipes._kinds.values()
    assert kind.recipe is not None
    with tuning_rows.trial({}):
        assert kind.recipe is None
        maxsim(queries, documents)
        (anew,) = recipes._kinds.values()
        assert anew is not kind
        assert anew.recipe is None


def test_tf32_makes_other_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator("cuda").manual_seed(0)
    queries, documents = normal(random, 4, 32, 128), normal(random, 9, 60, 128)
    exact = [maxsim(queries, documents) for _ in range(4)]
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    coarse = [maxsim(queries, documents) for _ in range(4)]
    assert all(torch.equal(scores, exact[0]) for scores in exact)
    assert all(torch.equal(scores, coarse[0]) for scores in coarse)
    assert not torch.equal(exact[0], coarse[0])


def test_threads() -> None:
    random = torch.Generator("cuda").manual_seed(0)
    pairs = [(normal(random, 4, 32, 128).bfloat16(), normal(random, 9, 60, 128).bfloat16()) for _ in range(4)]
    expected = [maxsim(*pair) for pair in pairs]
    dispatch.reset()
    wrong: list[int] = []

    def score(place: int) -> None:
        for _ in range(200):
            if not torch.equal(maxsim(*pairs[place]), expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=score, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_input_is_refused_after_a_recipe() -> None:
    random = torch.Generator("cuda").manual_seed(0)
    queries, documents = normal(random, 4, 32, 128), normal(random, 9, 60, 128)
    for _ in range(3):
        maxsim(queries, documents)
    with pytest.raises(ValueError, match="width"):
        maxsim(queries, documents[..., :64])
    with pytest.raises(ValueError, match="one device"):
        maxsim(queries, documents.cpu())
    with pytest.raises(ValueError, match="mask_rule"):
        maxsim(queries, documents, mask_rule=[])  # type: ignore[arg-type]


def stored(name: str, **options: Any) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return an operation on a stored index and its arguments."""
    pairs = {"pairs": 50} if options.pop("listed", False) else {}
    if name == "near_documents":
        problem = random_near(2, 300, 32, 2, 1000)
        given = {"centroid_scores": problem.centroid_scores, "documents": problem.listed}
        return near_documents, {
            **given,
            "centroid_offsets": problem.centroid_offsets,
            "ncells": 2,
            "document_count": 1000,
        }
    make = random_code if name == "code_maxsim" else random_residual
    fields = described(make(queries=3, **pairs, **options))
    fields["pairs"] = (fields.pop("pair_queries"), fields.pop("pair_documents")) if pairs else None
    if not pairs:
        del fields["pair_queries"], fields["pair_documents"]
    if name == "residual_maxsim":
        fields["queries"] = fields.pop("token_queries")
    return getattr(residual, name), fields


def described(problem: Any) -> dict[str, Any]:
    return {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}


STORED = {
    "near": ("near_documents", {}),
    "codes": ("code_maxsim", {}),
    "codes of pairs": ("code_maxsim", {"listed": True, "kept": 0.5, "centroids": 64}),
    "residuals": ("residual_maxsim", {"dim": 128}),
    "residuals of pairs": ("residual_maxsim", {"dim": 128, "listed": True, "nbits": 4}),
    "two 16-bit dtypes": ("residual_maxsim", {"dim": 128, "listed": True, "query_dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("name", STORED)
def test_the_same_bits_of_stored_documents(monkeypatch: pytest.MonkeyPatch, name: str, mode: Any) -> None:
    operation, options = STORED[name]
    function, keywords = stored(operation, **options)
    with mode():
        expected = the_long_way(monkeypatch, lambda: function(**keywords))
        for _ in range(4):
            assert torch.equal(function(**keywords), expected)
    (kind,) = recipes._kinds.values()
    assert kind.recipe is not None, kind.reason


@pytest.mark.parametrize(
    "wrong",
    [{"pairs": "one tensor"}, {"pairs": (None, None)}, {"least": None}, {"nbits": 2.0}, {"normalized": 1}],
    ids=str,
)
def test_what_is_refused_has_no_recipe(wrong: dict[str, Any]) -> None:
    function, keywords = stored("residual_maxsim", dim=128, listed=True)
    alike = {**keywords, "pairs": (keywords["pairs"][1],) * 2}
    for given in (keywords, alike, {**keywords, "pairs": None}):
        for _ in range(3):
            function(**given)
    assert all(kind.recipe is not None for kind in recipes._kinds.values())
    if wrong.get("pairs") == "one tensor":
        wrong = {"pairs": keywords["pairs"][1]}
    with pytest.raises(BadInput):
        function(**{**keywords, **wrong})
