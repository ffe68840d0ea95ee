"""What a search over all documents finds in two folders, for the same queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.index_diff import saved
from li_plugins.index_diff.finding import Finding, State, Tolerance
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.ops import residual_maxsim

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Best(NamedTuple):
    """The best documents of each query: ``scores`` and ``passages``, both ``[Q, k]``, best first."""

    scores: Tensor
    passages: Tensor


def load_queries(path: Path, dim: int) -> Tensor:
    """Return query embeddings ``[Q, Lq, d]`` in float32, from a file of torch or numpy.

    Raises
    ------
    BadInput
        When the file holds something else.
    """
    if not path.is_file():
        raise BadInput(f"{path} holds query embeddings", "no such file", "pass a .pt or .npy file")
    if path.suffix == ".npy":
        import numpy

        try:
            found = torch.from_numpy(numpy.load(path, allow_pickle=False))
        except (
            OSError,
            ValueError,
            TypeError,
            EOFError,
        ) as error:  # no array of numpy, or of no numbers that torch has
            raise BadInput(f"{path} is an array of numpy", str(error), "write it with numpy.save") from error
    else:
        saved.check(path)
        found = saved.load(path)
    if not isinstance(found, Tensor) or found.dim() != 3 or found.dtype not in _FLOATS or not found.numel():
        kind = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise BadInput(f"{path} holds floating query embeddings [Q, Lq, d]", str(kind), "stack queries of one length")
    if found.shape[2] != dim:
        raise BadInput(
            f"queries of {path} have the index's {dim} dimensions", str(found.shape[2]), "encode with the same model"
        )
    return found.float()


def compare_rankings(
    a: IndexFolder,
    b: IndexFolder,
    queries: Tensor,
    top_k: int,
    tolerance: Tolerance,
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> Finding:
    """Compare the ``top_k`` documents of queries ``[Q, Lq, d]``, scored by MaxSim against every stored document."""
    mine, theirs = (best(folder, queries, top_k, on_tokens) for folder in (a, b))
    k = mine.passages.shape[1]
    shared = (mine.passages[:, :, None] == theirs.passages[:, None, :k]).any(2).sum(1)
    overlap = shared.double() / k
    gap = (mine.scores - theirs.scores[:, :k]).abs() if mine.scores.shape == theirs.scores.shape else None
    greatest = float(gap.max()) if gap is not None else None
    agreement = [_tau(one, other) for one, other in zip(mine.passages.tolist(), theirs.passages.tolist(), strict=True)]
    orders = [tau for tau in agreement if tau is not None]
    mean_overlap = float(overlap.mean())
    figures = {
        "queries": len(queries),
        "k": k,
        "mean_overlap": mean_overlap,
        "least_overlap": float(overlap.min()),
        "same_first": float((mine.passages[:, 0] == theirs.passages[:, 0]).double().mean()),
        "mean_kendall_tau": sum(orders) / len(orders) if orders else None,
        "greatest_score_gap": greatest,
    }
    text = (
        f"{mean_overlap:.1%} of the best {k} on average, {figures['least_overlap']:.1%} at least; the same "
        f"first one for {figures['same_first']:.1%} of {len(queries)} queries"
    )
    text += f"; scores apart by {greatest:.4f} at most" if greatest is not None else ""
    state: State = "close" if mean_overlap >= tolerance.overlap else "differs"
    if torch.equal(mine.passages, theirs.passages) and greatest == 0:
        state = "identical"
    return Finding("rankings", state, text, figures)


def best(
    folder: IndexFolder, queries: Tensor, top_k: int, on_tokens: Callable[[int], object] = lambda tokens: None
) -> Best:
    """Return the best documents of an index, ``min(top_k, passages)`` of them; a chunk is scored at a time."""
    codec = folder.codec
    scores = queries.new_empty(len(queries), 0)
    passages = torch.empty(len(queries), 0, dtype=torch.int64)
    offset = 0
    for chunk in range(folder.chunks):
        lengths = folder.doclens(chunk)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        found = residual_maxsim(
            queries, folder.codes(chunk), folder.residuals(chunk), codec.centroids, codec.weights, offsets,
            nbits=codec.nbits, least=-9999.0,
        )  # fmt: skip
        numbers = torch.arange(offset, offset + len(lengths)).expand(len(queries), -1)
        scores, passages = torch.cat([scores, found], 1), torch.cat([passages, numbers], 1)
        # stable: of equal scores the first passage
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, passages = scores[:, :top_k], passages.gather(1, order[:, :top_k])
        offset += len(lengths)
        on_tokens(int(offsets[-1]))
    return Best(scores, passages)


def _tau(mine: list[int], theirs: list[int]) -> float | None:
    """Return Kendall's tau of the documents that are in both lists; None if fewer than two are."""
    places = {passage: place for place, passage in enumerate(theirs)}
    order = [places[passage] for passage in mine if passage in places]
    pairs = len(order) * (len(order) - 1) // 2
    if not pairs:
        return None
    agree = sum(first < second for place, first in enumerate(order) for second in order[place + 1 :])
    return 2 * agree / pairs - 1
