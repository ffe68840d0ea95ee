"""Lloyd's iterations: rows drawn at random, then assignment and update in turn, with clusters kept alive."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops.kmeans.problem import accumulation
from li_plugins.ops.kmeans.ranks import Alone

ROWS_AT_ONCE = 2**17
"""Most rows of which copies in the dtype of accumulation exist at a time."""


def train(
    rows: Tensor,
    clusters: int,
    iterations: int,
    seed: int,
    max_rows_per_cluster: int | None,
    assign: Callable[..., tuple[Tensor, Tensor]],
    cluster_sums: Callable[..., tuple[Tensor, Tensor]],
    ranks: Alone,
) -> Tensor:
    """Return the centroids; see ``kmeans``, which passes the two operations and where the rows are."""
    begin, count = ranks.span(rows)
    if count < clusters:
        raise BadInput(f"{clusters} clusters need at least as many rows", f"{count} rows", "add rows or ask for fewer")
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same rows for every device
    if max_rows_per_cluster is not None and count > clusters * max_rows_per_cluster:
        # in order, so that rows keep their numbers' order whichever rank has them
        chosen = torch.randperm(count, generator=generator)[: clusters * max_rows_per_cluster].sort().values
        chosen = chosen[(chosen >= begin) & (chosen < begin + rows.shape[0])] - begin
        rows = rows[chosen.to(rows.device)]
        begin, count = ranks.span(rows)
    squares = _squares(rows)
    if bool(ranks.added((~squares.isfinite()).sum())):
        raise BadInput("the rows of kmeans are finite", "NaN, an infinity or an overflow", "leave these rows out")
    first = torch.randperm(count, generator=generator)[:clusters]
    centroids = ranks.rows(rows, first.to(rows.device)).to(accumulation(rows))
    # many draws are quicker where the rows are
    drawing = generator if rows.device.type == "cpu" else torch.Generator(rows.device).manual_seed(seed)
    for _ in range(iterations):
        codes, best = assign(rows, _compared(centroids, rows), by="distance")
        sums, sizes = map(ranks.added, cluster_sums(rows, codes, clusters))
        centroids = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)
        vacant = (sizes == 0).nonzero().flatten()
        if vacant.numel():
            distances = (squares - 2 * best).clamp_(min=0)
            draws = torch.rand(count, generator=drawing, dtype=torch.float64, device=drawing.device)
            keys, numbers = ranks.greatest(_keys(distances, draws[begin : begin + rows.shape[0]]), vacant.numel())
            seeds = numbers[keys > 0]  # a row that is a centroid already is never drawn
            centroids[vacant[: seeds.numel()]] = ranks.rows(rows, seeds).to(centroids.dtype)
    return centroids


def _compared(centroids: Tensor, rows: Tensor) -> Tensor:
    """Return the centroids as rows meet them: in 16 bits where rows are, so that their products are exact in float32.

    By that an iteration may raise the mean squared distance by at most the squares of the roundings: ``2**-22`` of a
    centroid's square in float16, ``2**-16`` in bfloat16. Means stay in float32.
    """
    return centroids.to(rows.dtype) if rows.element_size() == 2 else centroids


def _squares(rows: Tensor) -> Tensor:
    """Return the squared norms, ``[N]``."""
    dtype = accumulation(rows)
    return torch.cat([block.to(dtype).square().sum(1) for block in rows.split(ROWS_AT_ONCE)])


def _keys(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return keys whose greatest are a sample without repetition in proportion to ``weights``; 0 for weight 0.

    They are weight / -log(u) (Efraimidis and Spirakis), however many weights there are.
    """
    return weights.double() / -uniform.clamp_(min=torch.finfo(torch.float64).tiny).log_()
