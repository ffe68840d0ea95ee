"""MaxSim of cosines against the definition: normalise, then score."""

from __future__ import annotations

from collections.abc import Callable

import obvious
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.errors import BadInput
from li_plugins.ops import MaskRule, cosine_maxsim, maxsim
from li_plugins.testing.oracle import judge


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Embeddings whose norms differ by orders of magnitude."""
    rows = torch.randn(shape, dtype=torch.float64)
    return (rows * 10 ** torch.randn(*shape[:-1], 1, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("documents", [(4,), (3, 2)], ids=["cross", "candidates"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("kernel")
def test_scores_and_gradients(documents: tuple[int, ...], masked: bool) -> None:
    torch.manual_seed(0)
    leaves = [drawn(3, 5, 7).requires_grad_(), drawn(*documents, 6, 7).requires_grad_()]
    keywords = {}
    if masked:
        keywords = {
            "query_weights": torch.rand(3, 5) > 0.3,
            "document_mask": torch.rand(*documents, 6) > 0.3,
            "document_lengths": torch.randint(1, 7, documents),
        }
    scores = cosine_maxsim(*leaves, **keywords)
    grad = torch.randn_like(scores)
    found = torch.autograd.grad(scores, leaves, grad)
    expected = obvious.maxsim(*(normalize(leaf, dim=-1) for leaf in leaves), mask_rule=MaskRule.ZERO, **keywords)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    for ours, exact in zip(found, torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_closer_than_a_normalised_copy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(8, 32, 64).to(dtype) * 3, torch.randn(9, 50, 64).to(dtype) / 3
    exact = maxsim(normalize(queries.double(), dim=-1), normalize(documents.double(), dim=-1))
    copies = maxsim(normalize(queries, dim=-1), normalize(documents, dim=-1), out_dtype=torch.float32)
    scores = cosine_maxsim(queries, documents, out_dtype=torch.float32)
    assert scores.dtype is torch.float32
    if dtype is torch.float32:
        assert judge(scores, exact, copies, magnitude=2 * exact.abs())
    else:
        assert (scores - exact).norm() < 0.1 * (copies - exact).norm()


def test_rows_without_a_direction() -> None:
    queries = torch.zeros(1, 2, 4, dtype=torch.float64).requires_grad_()
    documents = torch.ones(1, 3, 4, dtype=torch.float64).requires_grad_()
    cosine_maxsim(queries, documents).sum().backward()
    reference = torch.zeros(1, 2, 4, dtype=torch.float64).requires_grad_()
    obvious.maxsim(normalize(reference, dim=-1), normalize(documents.detach(), dim=-1)).sum().backward()
    torch.testing.assert_close(queries.grad, reference.grad)
    assert torch.equal(documents.grad, torch.zeros_like(documents))


@pytest.mark.parametrize("side", [0, 1])
def test_a_gradient_on_one_side(side: int) -> None:
    torch.manual_seed(0)
    tensors = [drawn(3, 5, 7), drawn(4, 6, 7)]
    tensors[side].requires_grad_()
    (found,) = torch.autograd.grad(cosine_maxsim(*tensors).sum(), tensors[side])
    expected = obvious.maxsim(*(normalize(tensor, dim=-1) for tensor in tensors)).sum()
    torch.testing.assert_close(found, *torch.autograd.grad(expected, tensors[side]))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own
def test_torch_compile_takes_it_whole() -> None:
    torch.manual_seed(0)
    leaves = [drawn(3, 5, 8, dtype=torch.float32).requires_grad_(), drawn(4, 6, 8, dtype=torch.float32)]
    compiled: Callable[..., Tensor] = torch.compile(cosine_maxsim, fullgraph=True, backend="eager")
    scores = compiled(*leaves)
    torch.testing.assert_close(scores, cosine_maxsim(*leaves))
    torch.testing.assert_close(
        *(torch.autograd.grad(one.sum(), leaves[0])[0] for one in (scores, cosine_maxsim(*leaves)))
    )


def test_a_second_derivative_is_refused() -> None:
    leaves = [drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4)]
    (grad,) = torch.autograd.grad(cosine_maxsim(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


def test_what_does_not_fit_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(BadInput, match="maxsim"):
        cosine_maxsim(torch.ones(2, 3, 4, dtype=torch.int64), torch.ones(2, 3, 4, dtype=torch.int64))
    with pytest.raises(BadInput, match="document_mask"):
        cosine_maxsim(torch.ones(2, 3, 4), torch.ones(2, 3, 4), document_mask=torch.ones(2, 4))
