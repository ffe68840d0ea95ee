"""The documents near queries on CUDA through Triton: which problems are served, and the two launches."""

from __future__ import annotations

import torch
from torch import Tensor

from li_plugins.api import Support
from li_plugins.ops import recipes
from li_plugins.ops.launch import Launcher, Options
from li_plugins.ops.maxsim.triton_arguments import plain, query_strides, rows
from li_plugins.ops.maxsim.triton_device import on, support
from li_plugins.ops.maxsim.tuning_sizes import power_of_two
from li_plugins.ops.near.problem import NearProblem
from li_plugins.ops.near.triton_near import mark_near, near_in_blocks

MOST_QUERIES = 65_535
"""Programs along the second and the third dimension of a grid."""

SCORES = 8192
"""How many of them a program of the first kernel reads: their keys fill half of the registers."""

KEYS, DOCUMENTS = 1024, 256
"""How many of them a program of the second kernel has in sight."""

FIRST, SECOND = Options(num_warps=8, num_stages=1), Options(num_warps=4, num_stages=1)

_launch_first, _launch_second = Launcher(near_in_blocks), Launcher(mark_near)


class Near:
    """The kernel object that the registry loads; it allocates the keys of the nearest centroids of each block."""

    def supports(self, problem: NearProblem) -> Support:
        """Serve scores of fp16, bf16 and fp32, which it orders as fp32."""
        return support(problem)

    def forward(self, problem: NearProblem) -> Tensor:
        """Return which documents are near."""
        scores = rows(problem.centroid_scores)
        queries, centroids, length = scores.shape
        columns = min(power_of_two(length, 16), 64)
        block = SCORES // columns
        blocks = -(-centroids // block)
        with on(scores.device):
            is_near = recipes.zeros(problem.scores_shape, torch.bool, scores.device)
            keys = recipes.empty((queries, length, blocks * problem.ncells), torch.int64, scores.device)
            listed, offsets = plain(problem.listed), plain(problem.centroid_offsets)
            tensors = scores, keys, is_near.view(torch.uint8)
            for first in range(0, queries if length else 0, MOST_QUERIES):
                count = min(queries - first, MOST_QUERIES)
                some = tensors if count == queries else [part[first : first + count] for part in tensors]
                _launch_first(
                    (blocks, -(-length // columns), count),
                    some[:2],
                    query_strides(scores),
                    (centroids, length, problem.ncells, blocks),
                    (),
                    (block, columns),
                    FIRST,
                )
                _launch_second(
                    (length * problem.ncells, count, 1),
                    (some[1], listed, offsets, some[2]),
                    (),
                    (length, problem.ncells, blocks * problem.ncells, problem.document_count),
                    (),
                    (KEYS, DOCUMENTS),
                    SECOND,
                )
        return is_near


NEAR = Near()
