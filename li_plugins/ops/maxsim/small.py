"""Small problems on the CPU: all similarities at once, in the fewest steps, since there each step costs a step's time.

``cpu`` settles masks and lengths before it multiplies, which saves products and takes a dozen steps more.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from li_plugins.ops.maxsim.candidates import Masks
from li_plugins.ops.maxsim.kept import compute_dtype
from li_plugins.ops.maxsim.problem import Layout, Problem

SIMILARITIES = 2**17
"""Most similarities of a small problem."""
PRODUCTS = 2**24
"""Most multiplications. Where there are more, leaving out masked tokens saves more than the steps for it cost."""
ELEMENTS = 2**20
"""Most numbers of packed texts, of which a list of pairs may leave out most."""
TEXTS = 64
"""Most documents, queries or pairs of packed problems, each of which takes steps of its own; of pairs that share
nothing there may be any number."""

Found = tuple[Tensor, Tensor | None]


def scores_and_winners(problem: Problem, want_winners: bool) -> Found | None:
    """Return scores and, if wanted, winners; ``None`` where the problem is not small, or not on the CPU.

    ``torch.max`` gives the first of equals there.
    """
    if problem.queries.device.type != "cpu":
        return None
    if problem.query_offsets is None:
        return _padded(problem, want_winners)
    if problem.document_mask is not None or problem.query_weights is not None:
        return None
    return (_pairs if problem.pair_queries is not None else _cross)(problem, want_winners)


def gradients(
    problem: Problem, grad_scores: Tensor, winners: Tensor, need_queries: bool, need_documents: bool
) -> tuple[Tensor | None, Tensor | None] | None:
    """Return the gradients that are needed of a small dense problem where every token gets one, else ``None``.

    The order of all sums is fixed.
    """
    queries, documents = problem.queries, problem.documents
    if queries.device.type != "cpu" or problem.query_offsets is not None:
        return None
    if not 0 < winners.numel() * queries.shape[-1] <= ELEMENTS or winners.numel() > SIMILARITIES:
        return None
    if int(winners.amin()) < 0:
        return None
    is_cross, dtype, weights = problem.is_cross, compute_dtype(queries.dtype), problem.query_weights
    numbers = torch.arange(documents.shape[:-2].numel()).view(*documents.shape[:-2], *((1, 1) if is_cross else (1,)))
    places = torch.add(winners, numbers, alpha=documents.shape[-2]).view(-1)
    factors = (grad_scores.T if is_cross else grad_scores).to(dtype).unsqueeze(-1)
    if weights is not None:
        factors = factors * (weights if is_cross else weights[:, None])
    factors = factors.expand(winners.shape)
    if problem.document_mask is not None and problem.rule.name == "ZERO":
        factors = factors * problem.document_mask.reshape(-1)[places].view(winners.shape)
    factors = factors.unsqueeze(-1)
    grad_queries = grad_documents = None
    if need_queries:
        met = documents.reshape(-1, documents.shape[-1]).index_select(0, places).view(*winners.shape, -1)
        grad_queries = (met.to(dtype) * factors).sum(0 if is_cross else 1).to(queries.dtype)
    if need_documents:
        met = (queries if is_cross else queries[:, None]).to(dtype) * factors
        sums = met.new_zeros(documents.shape[:-1].numel(), documents.shape[-1])
        grad_documents = sums.index_add_(0, places, met.flatten(0, -2)).view(documents.shape).to(documents.dtype)
    return grad_queries, grad_documents


def _is_small(query_tokens: int, document_tokens: int, width: int, together: int = 1) -> bool:
    similarities = together * query_tokens * document_tokens
    return similarities <= SIMILARITIES and 0 < similarities * width <= PRODUCTS


def _padded(problem: Problem, want_winners: bool) -> Found | None:
    """Serve dense layouts: ``[A * Lq, d]`` against ``[B, Ld, d]``, or ``[A, Lq, d]`` against ``[A, K, Ld, d]``."""
    is_cross = problem.layout is Layout.CROSS
    count, length, width = problem.queries.shape
    *leading, tokens, _ = problem.documents.shape
    rows = count * length if is_cross else length
    if not _is_small(count * length, leading[-1] * tokens, width):
        return None
    dtype = compute_dtype(problem.queries.dtype)
    queries, documents, weights = problem.queries.to(dtype), problem.documents.to(dtype), problem.query_weights
    grid = documents.new_empty(*leading, tokens, rows)
    if is_cross:
        torch.mm(documents.reshape(-1, width), queries.reshape(-1, width).T, out=grid.view(-1, rows))
    else:
        torch.bmm(documents.reshape(count, -1, width), queries.mT, out=grid.view(count, -1, rows))
    if weights is not None:
        weights = weights.to(dtype).reshape(1, rows) if is_cross else weights.to(dtype)[:, None]
        if problem.rule.name == "ZERO":
            grid.mul_(weights.unsqueeze(-2))
            weights = None
    masks = Masks.of(problem)
    masks.apply(grid)
    winners = None
    if want_winners:
        best, positions = grid.max(-2)
        winners = masks.passing(positions).to(problem.winners_dtype).view(problem.winners_shape)
    else:
        best = grid.amax(-2)
    if weights is not None:
        best = best * weights
    if is_cross:
        best = best.view(-1, count, length).transpose(0, 1)
    scores = masks.empty_filled(best.sum(-1), problem.rule.empty_score)
    return scores.to(problem.out_dtype).contiguous(), winners


def _cross(problem: Problem, want_winners: bool) -> Found | None:
    """Serve packed queries that all meet all packed documents."""
    query_lengths, document_lengths = _lengths(problem.query_offsets), _lengths(problem.document_offsets)
    (total, width), dtype = problem.queries.shape, compute_dtype(problem.queries.dtype)
    is_small = len(query_lengths) <= TEXTS and len(document_lengths) <= TEXTS
    if not is_small or not all(document_lengths) or not _is_small(total, problem.documents.shape[0], width):
        return None
    grid = _product(problem.documents.to(dtype), problem.queries.to(dtype))
    best, positions = _best(grid, document_lengths, want_winners)
    found, winners = _floored(torch.stack(best), torch.stack(positions) if want_winners else None, problem.floor)
    scores = torch.stack([part.sum(-1) for part in found.split(query_lengths, dim=1)])
    if winners is not None:
        columns = [part.T for part in winners.split(query_lengths, dim=1)]
        winners = _as_winners(problem, pad_sequence(columns, batch_first=True, padding_value=-1).movedim(2, 0))
    return scores.to(problem.out_dtype), winners


def _pairs(problem: Problem, want_winners: bool) -> Found | None:
    """Serve listed pairs of packed texts; documents that follow one another and meet one query share a product."""
    assert problem.pair_queries is not None and problem.pair_documents is not None
    assert problem.document_offsets is not None
    queries, documents = problem.pair_queries.tolist(), problem.pair_documents.tolist()
    query_lengths, document_lengths = _lengths(problem.query_offsets), _lengths(problem.document_offsets)
    if not queries or not all(document_lengths):
        return None
    runs = _runs(queries, documents)
    similarities = [
        query_lengths[queries[start]] * sum(document_lengths[documents[start] : documents[stop - 1] + 1])
        for start, stop in runs
    ]
    width, dtype = problem.queries.shape[1], compute_dtype(problem.queries.dtype)
    is_lean = len(queries) <= TEXTS and problem.queries.numel() + problem.documents.numel() <= ELEMENTS
    # where most pairs share nothing, a step for each is all there is to be had
    are_apart = 2 * len(set(queries)) > len(queries)
    if not (are_apart or is_lean) or not _is_small(max(similarities) if are_apart else sum(similarities), 1, width):
        return None
    rows, tokens = problem.queries.split(query_lengths), problem.documents
    begins = problem.document_offsets.tolist()
    best: list[Tensor] = []
    positions: list[Tensor] = []
    for start, stop in runs:
        first, last = documents[start], documents[stop - 1]
        grid = _product(tokens[begins[first] : begins[last + 1]].to(dtype), rows[queries[start]].to(dtype))
        values, places = _best(grid, document_lengths[first : last + 1], want_winners)
        best += values
        positions += places
    padded = pad_sequence(positions, batch_first=True, padding_value=-1) if want_winners else None
    found, winners = _floored(pad_sequence(best, batch_first=True), padded, problem.floor)
    return found.sum(-1).to(problem.out_dtype), None if winners is None else _as_winners(problem, winners)


def _product(tokens: Tensor, rows: Tensor) -> Tensor:
    """Return the similarities ``[T, R]``. Autocast leaves a product alone that has a place to go."""
    return torch.mm(tokens, rows.T, out=tokens.new_empty(tokens.shape[0], rows.shape[0]))


def _runs(queries: list[int], documents: list[int]) -> list[tuple[int, int]]:
    """Return where each run of pairs of one query with documents in a row begins and ends."""
    breaks = [
        place
        for place in range(1, len(queries))
        if queries[place] != queries[place - 1] or documents[place] != documents[place - 1] + 1
    ]
    return list(pairwise([0, *breaks, len(queries)]))


def _lengths(offsets: Tensor | None) -> list[int]:
    assert offsets is not None
    return [end - start for start, end in pairwise(offsets.tolist())]


def _best(grid: Tensor, lengths: list[int], want_positions: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return the greatest of each document's rows of ``grid [T, R]`` and, if wanted, where it stands first."""
    parts = grid.split(lengths)
    if not want_positions:
        return [part.amax(0) for part in parts], []
    found = [part.max(0) for part in parts]
    return [values for values, _ in found], [positions for _, positions in found]


def _floored(best: Tensor, positions: Tensor | None, floor: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Raise ``best [n, R]`` to 0 where ``floor [n]`` says so; nothing has won there."""
    if floor is None:
        return best, positions
    is_raised = floor[:, None] & (best < 0)
    return best.masked_fill(is_raised, 0), None if positions is None else positions.masked_fill(is_raised, -1)


def _as_winners(problem: Problem, positions: Tensor) -> Tensor:
    """Return positions, -1 past the end of a query, in the shape and dtype of winners."""
    winners = positions.new_full(problem.winners_shape, -1, dtype=problem.winners_dtype)
    winners[..., : positions.shape[-1]] = positions
    return winners
