"""Padded batches: what the library's MaxSim returns and what flows back, patched and unpatched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers.multi_vector_encoder import scoring
from sentence_transformers.util import similarity
from st_batches import BOTH_GRADS, CHUNKS, HALVES, KINDS, MASKS, PUBLIC, Kind, embeddings, pair, prefix

from li_plugins.testing.parity import assert_parity, call_unpatched

# Masks, shapes, dtypes


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_masks_mean_what_the_library_says(kind: Kind, mask: str, dtype: torch.dtype) -> None:
    batch = pair(kind, dtype)
    masks = MASKS[mask](tuple(batch[0].shape[:-1]), tuple(batch[1].shape[:-1]))
    found = assert_parity(kind.function, batch, *masks, wanted=BOTH_GRADS).scores
    assert found.dtype is torch.float32
    assert mask != "all masked" or found.unique().tolist() == [-1e9]


@pytest.mark.parametrize("kind", PUBLIC, ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_divides_by_the_tokens_that_count(kind: Kind, masked: bool) -> None:
    batch = pair(kind)
    batch[0][1, 3:] = 0  # padding where there is no mask
    masks = MASKS["both" if masked else "none"]((3, 5), tuple(batch[1].shape[:-1]))
    mean = assert_parity(kind.function, batch, *masks, length_normalize=True).scores
    total = assert_parity(kind.function, batch, *masks).scores
    assert not torch.equal(mean, total)


@pytest.mark.parametrize("kind", PUBLIC, ids=repr)
def test_zero_rows_are_padding_without_a_mask(kind: Kind) -> None:
    queries, documents = torch.ones(3, 4, 8), -torch.ones(*kind.leading(3, 2), 5, 8)
    documents[..., 2:, :] = 0
    queries[1, 2:] = 0
    assert assert_parity(kind.function, [queries, documents], wanted=BOTH_GRADS).scores.unique().tolist() == [-32, -16]
    documents[0] = 0
    assert assert_parity(kind.function, [queries, documents], wanted=BOTH_GRADS).scores.min() == -1e9


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_which_rows_are_zero_is_read_as_in_the_library(dtype: torch.dtype) -> None:
    from li_plugins_sentence_transformers._requests import zero_row_mask

    rows = torch.zeros(2, 6, 8, dtype=dtype)
    rows[0, 1, 3], rows[0, 2, 7], rows[0, 3, 0] = 1, -1, torch.nan
    rows[1, 0, 1], rows[1, 1, 2], rows[1, 2] = torch.inf, torch.finfo(dtype).smallest_normal, -0.0
    for batch in (rows, rows.transpose(0, 1), rows[:0], rows[..., :0]):
        found, expected = zero_row_mask(batch), similarity._zero_row_mask(batch)
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_masked_token_never_wins_over_negative_similarities(kind: Kind) -> None:
    queries, documents = torch.ones(3, 4, 8), -torch.ones(*kind.leading(3, 2), 5, 8)
    documents[..., 3, :] = 9
    mask = torch.ones(documents.shape[:-1])
    mask[..., 3] = 0
    assert assert_parity(kind.function, [queries, documents], None, mask, wanted=BOTH_GRADS).scores.unique() == -32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("queries", "documents", "query_tokens", "document_tokens", "width"),
    [
        (1, 1, 1, 1, 2),
        (2, 5, 32, 180, 128),
        (5, 7, 17, 63, 48),
        (2, 2, 257, 33, 320),
        (2, 1, 2, 4096, 16),
        (1, 127, 64, 1, 24),
        (4, 2, 1, 1271, 72),
    ],
)
def test_odd_shapes(
    queries: int, documents: int, query_tokens: int, document_tokens: int, width: int, dtype: torch.dtype
) -> None:
    mask = prefix((documents, document_tokens))
    batch = [
        embeddings(queries, query_tokens, width, dtype=dtype),
        embeddings(documents, document_tokens, width, dtype=dtype),
    ]
    assert_parity(similarity.maxsim, batch, None, mask, wanted=BOTH_GRADS)


@pytest.mark.parametrize("kind", CHUNKS, ids=repr)
def test_empty_chunks(kind: Kind) -> None:
    batch = [embeddings(0, 4, 8), embeddings(*kind.leading(0, 3), 5, 8)]
    assert not assert_parity(kind.function, batch, None, None, wanted=BOTH_GRADS).scores.numel()
    batch = [embeddings(3, 0, 8), embeddings(*kind.leading(3, 2), 5, 8)]
    assert not assert_parity(kind.function, batch, None, None).scores.any()


def test_ties_go_to_the_first_token() -> None:
    documents = embeddings(1, 1, 8).repeat(3, 4, 1)
    for kind in CHUNKS:
        found = assert_parity(kind.function, [embeddings(3, 5, 8), documents], None, None, wanted=(False, True))
        assert found.grads[0] is not None
        assert found.grads[0][:, 0].any()
        assert not found.grads[0][:, 1:].any()


def test_the_columns_of_groups_are_in_the_librarys_order() -> None:
    queries, documents = embeddings(3, 4, 8), embeddings(5, 2, 6, 8)
    scores = scoring.colbert_scores(queries, documents)
    for group in range(5):
        for member in range(2):
            alone = similarity.maxsim(queries, documents[group, member][None])
            torch.testing.assert_close(scores[:, group * 2 + member], alone[:, 0])


# Inputs


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_strides_do_not_matter(kind: Kind) -> None:
    leading = kind.leading(3, 4)
    documents = embeddings(*leading, 10, 8)
    odd = {
        "sliced": [embeddings(3, 10, 8)[:, ::2], documents[..., ::2, :]],
        "transposed": [embeddings(8, 5, 3).permute(2, 1, 0), embeddings(*leading, 8, 10).transpose(-1, -2)],
        "expanded": [embeddings(1, 5, 8).expand(3, -1, -1), documents[..., :1, :].expand(*leading, 6, 8)],
    }
    for batch in odd.values():
        mask = (torch.rand(batch[1].shape[-2], *leading) < 0.5).movedim(0, -1)
        ours = kind.function(*batch, None, mask)
        torch.testing.assert_close(ours, call_unpatched(kind.function, *batch, None, mask), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PUBLIC, ids=repr)
def test_arrays_are_converted(kind: Kind) -> None:
    batch = [side.numpy() for side in pair(kind)]
    ours = kind.function(*batch)
    torch.testing.assert_close(ours, call_unpatched(kind.function, *batch), rtol=0, atol=1e-6)


def test_a_mask_of_size_one_stands_for_all() -> None:
    batch = [embeddings(3, 4, 8), embeddings(5, 6, 8)]
    assert_parity(similarity.maxsim, batch, torch.rand(1, 4), torch.rand(1, 6).round(), wanted=BOTH_GRADS)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["queries", "documents"])
def test_a_gradient_on_one_side_only(kind: Kind, wanted: tuple[bool, bool]) -> None:
    batch = pair(kind)
    assert_parity(kind.function, batch, None, prefix(tuple(batch[1].shape[:-1])), wanted=wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_modes_without_gradients(kind: Kind, mode: Callable[[], Any]) -> None:
    batch = pair(kind)
    batch[0].requires_grad_()
    with mode():
        ours, library = kind.function(*batch, None, None), call_unpatched(kind.function, *batch, None, None)
    assert (ours.requires_grad, ours.is_inference()) == (library.requires_grad, library.is_inference())
    torch.testing.assert_close(ours, library)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_embeddings_and_masks_made_in_inference_mode(kind: Kind) -> None:
    """As ``encode`` makes them; a mask may be one beside embeddings that require a gradient."""
    with torch.inference_mode():
        inferred = pair(kind)
        mask = prefix(tuple(inferred[1].shape[:-1]))
    assert mask.is_inference()
    ours = kind.function(*inferred, None, mask)
    torch.testing.assert_close(ours, call_unpatched(kind.function, *inferred, None, mask))
    assert_parity(kind.function, pair(kind), None, mask, wanted=BOTH_GRADS)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_autograd_cannot_save_is_the_librarys_error(frozen: int) -> None:
    """An embedding of inference mode beside one that requires a gradient fails with and without the patch."""
    batch = pair(PUBLIC[0])
    with torch.inference_mode():
        batch[frozen] = batch[frozen].clone()
    batch[1 - frozen].requires_grad_()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        similarity.maxsim(*batch)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        call_unpatched(similarity.maxsim, *batch)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.float16])
@pytest.mark.parametrize("mask", ["none", "holes", "weights"])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_autocast(kind: Kind, mask: str, given: torch.dtype, lowered: torch.dtype) -> None:
    batch = pair(kind, given)
    masks = MASKS[mask]((3, 5), tuple(batch[1].shape[:-1]))
    assert_parity(kind.function, batch, *masks, wanted=BOTH_GRADS, lowered=lowered)


@pytest.mark.parametrize("kind", CHUNKS, ids=repr)
def test_nan_goes_where_the_library_lets_it(kind: Kind) -> None:
    queries, documents = embeddings(3, 4, 8), embeddings(3, 6, 8)
    documents[1, 2, 3] = queries[2, 0, 0] = documents[0, 5, 0] = torch.nan
    mask = torch.ones(3, 6)
    mask[0, 5] = 0
    ours = kind.function(queries, documents, None, mask)
    library = call_unpatched(kind.function, queries, documents, None, mask)
    torch.testing.assert_close(ours, library, equal_nan=True)
    assert ours.isnan().any()
    assert not ours.isnan().all()


def test_the_scores_may_be_written_to() -> None:
    for kind in KINDS:
        batch = pair(kind)
        batch[0].requires_grad_()
        scores = kind.function(*batch, None, None)
        scores += 1
        scores.sum().backward()
        assert batch[0].grad is not None
        with torch.no_grad():
            scores = kind.function(*batch, None, None)
        # what was made without gradients may take part in them, unless it is a view
        scores.mul_(torch.ones((), requires_grad=True))
        kind.function(*batch, None, None).detach_()


# Seen from outside


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_explain_names_the_kernel_or_the_reason(kind: Kind) -> None:
    import li_plugins

    if kind.name == "colbert_scores_pairwise":
        assert li_plugins.original(kind.function) is kind.function, "it only calls maxsim_pairwise"
        return
    batch = pair(kind)
    assert "blocked" in str(li_plugins.explain(kind.function, *batch, None, None))
    assert "int64" in str(li_plugins.explain(kind.function, *(side.long() for side in batch), None, None))


@pytest.mark.parametrize("name", ["maxsim", "colbert_scores"])
def test_one_launch_serves_what_the_library_cuts(name: str, li_plugins_counts: Any) -> None:
    """A tiny budget would cut the batch; padded batches are never copied, and one call of ours takes them whole."""
    from li_plugins.ops import dispatch

    kind = next(kind for kind in PUBLIC if kind.name == name)
    batch = pair(kind)
    before = sum(dispatch.counters().values())
    ours = kind.function(*batch, chunk_elements=1)
    assert sum(dispatch.counters().values()) == before + 1
    torch.testing.assert_close(ours, call_unpatched(kind.function, *batch, chunk_elements=1))
    assert sum(li_plugins_counts.calls.values()) == 1


def test_memory_does_not_grow_with_the_grid() -> None:
    """1 GiB of similarities in the library's default budget of chunks; the patched call peaks far below."""
    import resource

    queries, documents = embeddings(64, 32, 16), embeddings(512, 256, 16)
    similarity.maxsim(queries[:2], documents[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queries.requires_grad_()
    similarity.maxsim(queries, documents).sum().backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**30 / 4, f"{grown / 2**20:.0f} MiB"
