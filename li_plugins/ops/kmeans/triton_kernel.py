"""Assignment and update of k-means on CUDA through Triton: which problems are served, and the launches."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops.kmeans.problem import AssignProblem, SumsProblem
from li_plugins.ops.kmeans.triton_nearest import nearest_group, nearest_in_group
from li_plugins.ops.kmeans.triton_sums import add_parts, sum_parts
from li_plugins.ops.launch import Launcher, Options
from li_plugins.ops.maxsim.triton_arguments import INTERPRETED, card_of, precision, rows
from li_plugins.ops.maxsim.triton_device import on, support
from li_plugins.ops.maxsim.tuning import built_in_forward
from li_plugins.ops.maxsim.tuning_sizes import Sizes, power_of_two

ROWS_AT_ONCE = 2**22
"""Most rows whose groups, or whose order by cluster, are in memory at a time: 16 and some 150 MiB."""

WIDEST_TILE = 128
"""Most centroids that a tile has."""

STAGES = 2
"""Tiles of centroids that are on their way at a time, where they meet 256 rows: up to 2 % quicker than three."""

LINES = 4
"""Rows whose group one warp looks through: no barrier, and many programs to wait for L2."""

PART = 512
"""Rows of a cluster that one program adds up."""

_launch_group = Launcher(nearest_group)
_launch_in_group = Launcher(nearest_in_group)
_launch_parts = Launcher(sum_parts)
_launch_add = Launcher(add_parts)


class Assign:
    """Memory beyond inputs and outputs: four bytes for each of ``ROWS_AT_ONCE`` rows; by distance the squares."""

    def supports(self, problem: AssignProblem) -> Support:
        """Serve fp16, bf16 and fp32 in any mixture, on NVIDIA's devices of compute capability 8.0 and later."""
        if problem.centroids.dtype is torch.float64:
            return Support(False, "centroids in float64: it computes in fp32")
        return support(problem)

    def forward(self, problem: AssignProblem) -> tuple[Tensor, Tensor]:
        """Return the codes and the greatest similarities."""
        points, centroids = rows(problem.rows), rows(problem.centroids)
        codes = points.new_empty(problem.scores_shape, dtype=torch.int32)
        best = points.new_empty(problem.scores_shape, dtype=torch.float32)
        with on(points.device):
            half_squares = _half_squares(centroids) if problem.by_distance else None
            for start in range(0, points.shape[0], ROWS_AT_ONCE):
                block = slice(start, start + ROWS_AT_ONCE)
                _assign(points[block], centroids, half_squares, codes[block], best[block])
        return codes, best


class Sums:
    """Memory beyond inputs and outputs: the order of ``ROWS_AT_ONCE`` rows, and one sum for each ``PART`` of them."""

    def supports(self, problem: SumsProblem) -> Support:
        """Serve fp16, bf16 and fp32 on NVIDIA's devices of compute capability 8.0 and later."""
        return support(problem)

    def forward(self, problem: SumsProblem) -> tuple[Tensor, Tensor]:
        """Return the sums and sizes of the clusters."""
        points, clusters = rows(problem.rows), problem.clusters
        sums = points.new_empty(problem.scores_shape, dtype=torch.float32)
        sizes = torch.zeros(clusters, dtype=torch.int64, device=points.device)
        if not points.shape[0]:
            return sums.zero_(), sizes
        with on(points.device):
            for start in range(0, points.shape[0], ROWS_AT_ONCE):
                block = slice(start, start + ROWS_AT_ONCE)
                sizes += _add(points[block], problem.codes[block], sums, is_first=start == 0)
        return sums, sizes


ASSIGN, SUMS = Assign(), Sums()


def _half_squares(centroids: Tensor) -> Tensor:
    """Return half of each centroid's square, ``[K]``, and infinities up to the width of a tile."""
    half_squares = centroids.float().square().sum(1).div_(2)
    return torch.nn.functional.pad(half_squares, (0, max(0, WIDEST_TILE - len(centroids))), value=torch.inf)


def _assign(points: Tensor, centroids: Tensor, half_squares: Tensor | None, codes: Tensor, best: Tensor) -> None:
    count, width = points.shape
    widen = points.dtype is not centroids.dtype
    # one query whose tokens are the rows, and one document whose tokens are the centroids
    sizes = Sizes("CROSS", False, 4 if widen else points.element_size(), width, 1, count, 1, centroids.shape[0])
    blocks = (chosen := built_in_forward(sizes, card_of(points.device))).blocks
    groups = torch.empty_like(codes)
    strides, numbers = (points.stride(0), centroids.stride(0)), (count, centroids.shape[0])
    _launch_group(
        (-(-count // blocks.ROWS), 1, 1),
        (points, centroids, half_squares, groups),
        strides,
        numbers,
        (),
        (
            width,
            blocks.ROWS,
            blocks.BLOCK_N,
            blocks.NEAR,
            blocks.FAR,
            widen or INTERPRETED,
            precision(sizes.element_size),
            INTERPRETED,
        ),
        chosen.options._replace(num_stages=STAGES) if blocks.ROWS == 256 else chosen.options,
    )
    _launch_in_group(
        (-(-count // LINES), 1, 1),
        (points, centroids, half_squares, groups, codes, best),
        strides,
        numbers,
        (),
        (width, LINES, blocks.BLOCK_N, min(power_of_two(width, 16), 128), INTERPRETED),
        Options(1, 1),
    )


def _add(points: Tensor, codes: Tensor, sums: Tensor, is_first: bool) -> Tensor:
    """Add rows to the sums, which ``is_first`` does not read; return how many each cluster has got."""
    clusters, width = sums.shape
    by_cluster, order = codes.sort(stable=True)
    # whatever lies outside the clusters is before the first start or after the last
    starts = torch.searchsorted(by_cluster, torch.arange(clusters + 1, device=codes.device, dtype=codes.dtype))
    sizes = starts.diff()
    later = (sizes - 1).clamp_(min=0) // PART
    first_parts = torch.nn.functional.pad(later.cumsum(0), (1, 0))
    most = points.shape[0] // PART
    owners = torch.searchsorted(first_parts[1:], torch.arange(most, device=codes.device), right=True)
    parts = sums.new_empty(most, width)
    block_d = min(power_of_two(width, 16), 128)
    pieces = -(-width // block_d)
    lines = 2048 // block_d
    _launch_parts(
        (clusters + most, pieces, 1),
        (points, order, starts, owners, first_parts, sums, parts),
        (points.stride(0),),
        (clusters,),
        (),
        (width, lines, block_d, PART, is_first),
        Options(4, 1),
    )
    if most:
        _launch_add(
            (clusters, pieces, 1), (first_parts, sums, parts), (), (), (), (width, lines, block_d), Options(4, 1)
        )
    return sizes
