"""k-means: the nearest centroid of each row, what each cluster adds up to, and both in turn from a seed."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import checks, dispatch, forward_only
from li_plugins.ops.kmeans.problem import AssignProblem, SumsProblem, accumulation
from li_plugins.ops.kmeans.ranks import Alone, Ranks
from li_plugins.ops.kmeans.training import train

__all__ = ["assign", "cluster_sums", "explain_assign", "kmeans"]

Measure = Literal["dot", "distance"]


def assign(rows: Tensor, centroids: Tensor, *, by: Measure = "dot") -> tuple[Tensor, Tensor]:
    """Find the nearest centroid of each row without the matrix of their similarities.

    Parameters
    ----------
    rows
        ``[N, d]``, float16, bfloat16, float32 or float64.
    centroids
        ``[K, d]``, K >= 1, of any of these dtypes.
    by
        ``"dot"``: the greatest dot product; ``"distance"``: the smallest Euclidean distance.

    Returns
    -------
    codes, best
        ``[N]`` int32, the first of equally near ones; ``[N]`` float32 (float64 for float64 inputs): the dot product,
        by distance less half of the centroid's square, so that ``|x|^2 - 2 * best`` is the squared distance. No
        gradient flows.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    """
    problem = _assign_problem(rows, centroids, by)
    return _assign_op(problem.rows, problem.centroids, problem.by_distance)


def explain_assign(rows: Tensor, centroids: Tensor, *, by: Measure = "dot") -> dispatch.Plan:
    """Return the plan of ``assign`` for these arguments.

    Raises
    ------
    BadInput, NoKernel
        As ``assign`` does.
    """
    return dispatch.explain("assign", _assign_problem(rows, centroids, by))


def cluster_sums(rows: Tensor, codes: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Add up the rows of each cluster.

    Parameters
    ----------
    rows
        ``[N, d]``, float16, bfloat16, float32 or float64.
    codes
        ``[N]``, int32 or int64: the cluster of each row; read by value on the CPU only.
    clusters
        How many clusters there are.

    Returns
    -------
    sums, sizes
        ``[clusters, d]`` float32 (float64 for float64 rows), added in the rows' order; ``[clusters]`` int64.

    Raises
    ------
    BadInput
        When the arguments have no meaning together.
    """
    checks.tensor("rows", rows, 2, checks.FLOATS)
    checks.tensor("codes", codes, 1, (torch.int32, torch.int64), rows)
    checks.size("codes", codes, rows.shape[0], "one for each row")
    if clusters < 1:
        raise BadInput("clusters is a positive number", repr(clusters), "pass the number of centroids")
    return _sums_op(rows.detach(), codes, clusters)


def kmeans(
    rows: Tensor,
    clusters: int,
    *,
    iterations: int = 25,
    seed: int = 0,
    max_rows_per_cluster: int | None = 256,
    group: Any = None,
) -> Tensor:
    """Train centroids by Lloyd's iterations from rows drawn at random.

    The same rows, seed and device give the same centroids; torch's own random state is neither read nor changed.
    Clusters without rows, and with them the later ones of equal centroids, begin anew at rows drawn in proportion to
    their squared distance. Rows of 16 bits meet centroids that are rounded to their dtype; means are float32.

    Parameters
    ----------
    rows
        ``[N, d]``, float16, bfloat16, float32 or float64, finite, N >= clusters.
    clusters
        How many centroids.
    iterations
        How often rows are assigned and centroids moved.
    seed
        Of the draws.
    max_rows_per_cluster
        Rows beyond ``clusters`` times this are left out, drawn at random; ``None``: all take part.
    group
        A ``torch.distributed`` process group, each rank of which calls this with its part of the rows: the centroids
        are those of all rows, the same on every rank, and sums of all ranks are in memory at a time. ``None``: all
        rows are here, whether or not there are other ranks.

    Returns
    -------
    Tensor
        ``[clusters, d]``, float32 (float64 for float64 rows), on the device of the rows.

    Raises
    ------
    BadInput
        When there are fewer rows than clusters, or a row is not finite.
    """
    checks.tensor("rows", rows, 2, checks.FLOATS)
    if clusters < 1 or iterations < 0 or (max_rows_per_cluster is not None and max_rows_per_cluster < 1):
        raise BadInput(
            "kmeans takes at least one cluster, no negative iterations and at least one row per cluster",
            f"clusters={clusters}, iterations={iterations}, max_rows_per_cluster={max_rows_per_cluster}",
            "correct the numbers",
        )
    ranks = Alone() if group is None else Ranks(group)
    return train(rows.detach(), clusters, iterations, seed, max_rows_per_cluster, assign, cluster_sums, ranks)


def _assign_problem(rows: Tensor, centroids: Tensor, by: Any) -> AssignProblem:
    checks.tensor("rows", rows, 2, checks.FLOATS)
    checks.tensor("centroids", centroids, 2, checks.FLOATS, rows)
    checks.same_width("rows", rows.shape[1], "centroids", centroids.shape[1])
    checks.not_empty("centroids", centroids)
    if by not in ("dot", "distance"):
        raise BadInput("by is 'dot' or 'distance'", repr(by), "pass one of these")
    return AssignProblem(rows.detach(), centroids.detach(), by == "distance")


def _assigned(problem: AssignProblem) -> tuple[Tensor, Tensor]:
    rows = problem.rows
    return (
        rows.new_empty(problem.scores_shape, dtype=torch.int32),
        rows.new_empty(problem.scores_shape, dtype=accumulation(rows, problem.centroids)),
    )


def _summed(problem: SumsProblem) -> tuple[Tensor, Tensor]:
    rows = problem.rows
    return (
        rows.new_empty(problem.scores_shape, dtype=accumulation(rows)),
        rows.new_empty(problem.clusters, dtype=torch.int64),
    )


def _check_codes(problem: SumsProblem) -> None:
    checks.values_below("codes", problem.codes, problem.clusters)


_assign_op = forward_only.register(
    "assign",
    "(Tensor rows, Tensor centroids, bool by_distance) -> (Tensor, Tensor)",
    AssignProblem,
    _assigned,
)
_sums_op = forward_only.register(
    "cluster_sums",
    "(Tensor rows, Tensor codes, SymInt clusters) -> (Tensor, Tensor)",
    SumsProblem,
    _summed,
    check=_check_codes,
)
