"""``score_multi_vector`` as packed MaxSim: every passage moves once, none is padded, memory is bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, explain_maxsim_packed, maxsim_packed, supports_maxsim_packed
from li_plugins.ops.arguments import Ragged
from li_plugins_colpali import _requests
from li_plugins_colpali._requests import Request

_processing: Any = import_module("colpali_engine.utils.processing_utils")

BYTES_PER_LAUNCH = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Passage embeddings that one launch takes, by device; bounds the copy that puts them one after the other."""
FLOOR_VARIABLE = "LI_PLUGINS_COLPALI_FLOOR"


def score_multi_vector(
    qs: Tensor | list[Tensor],
    ps: Tensor | list[Tensor],
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> Tensor | Decline:
    """Score every query against every passage: ``[queries, passages]``, float32 on the CPU.

    ``batch_size`` does not bound memory here. It says which passages the library pads together, and a padded passage
    scores at least 0 for each query token.
    """
    columns = []
    for request in _requests_of(qs, ps, batch_size, device):
        if isinstance(request, Decline):
            return request
        columns.append(maxsim_packed(**request))
    return torch.cat(columns, dim=1).cpu()


def explain_score_multi_vector(
    qs: Tensor | list[Tensor],
    ps: Tensor | list[Tensor],
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> object:
    """Say which kernel ``score_multi_vector`` would use, or why the library's own code would run."""
    request = next(_requests_of(qs, ps, batch_size, device))
    return request if isinstance(request, Decline) else explain_maxsim_packed(**request)


def _requests_of(qs: Any, ps: Any, batch_size: Any, device: Any) -> Iterator[Request | Decline]:
    """Yield one request for each run of passages that fits a launch, or a refusal before any."""
    queries, passages = _texts("queries", qs), _texts("passages", ps)
    refusal = (
        _requests.named_backend()
        or (queries if isinstance(queries, Decline) else None)
        or (passages if isinstance(passages, Decline) else None)
    )
    if refusal or isinstance(queries, Decline) or isinstance(passages, Decline):
        yield refusal or Decline("no texts")
        return
    if not isinstance(batch_size, int) or batch_size < 1:
        yield Decline(f"batch_size={batch_size!r}: needs a positive integer")
        return
    floors = _floors([len(passage) for passage in passages], batch_size)
    if isinstance(floors, Decline):
        yield floors
        return
    where = torch.device(device or _processing.get_torch_device("auto"))
    packed_queries = arguments.concatenated(queries, where)
    for start, stop in _runs(passages, BYTES_PER_LAUNCH.get(where.type, 8 * 2**20)):
        packed_passages = arguments.concatenated(passages[start:stop], where)
        floor = torch.tensor(floors[start:stop], device=where) if any(floors[start:stop]) else None
        yield _packed(packed_queries, packed_passages, floor)


def _texts(side: str, texts: Any) -> list[Tensor] | Decline:
    """Return the token embeddings ``[length, d]`` of each text."""
    if not isinstance(texts, (list, tuple, Tensor)) or (isinstance(texts, Tensor) and texts.ndim != 3):
        return Decline(f"{side} of type {type(texts).__name__}: needs a list of matrices or a tensor of rank 3")
    if len(texts) == 0:
        return Decline(f"no {side}: the library raises its own error")
    items = list(texts.unbind()) if isinstance(texts, Tensor) else list(texts)
    return arguments.unlike(side, items) or items


def _floors(lengths: Sequence[int], batch_size: int) -> list[bool] | Decline:
    """Return which passages the library pads: zero rows, which a query token may prefer."""
    if os.environ.get(FLOOR_VARIABLE, "1").strip().lower() in ("0", "false", "no", "off"):
        return [False] * len(lengths)
    floors: list[bool] = []
    for start in range(0, len(lengths), batch_size):
        together = lengths[start : start + batch_size]
        longest = max(together)
        if longest == 0:
            return Decline("passages without tokens have no best token")
        floors += [length < longest for length in together]
    return floors


def _runs(passages: Sequence[Tensor], limit: int) -> Iterator[tuple[int, int]]:
    start = size = 0
    for stop, passage in enumerate(passages):
        addition = passage.numel() * passage.element_size()
        if size + addition > limit and stop > start:
            yield start, stop
            start, size = stop, 0
        size += addition
    yield start, len(passages)


def _packed(queries: Ragged, passages: Ragged, floor: Tensor | None) -> Request | Decline:
    multiplied = arguments.as_multiplied(queries.tokens, passages.tokens, query_rank=2, document_rank=2)
    if isinstance(multiplied, Decline):
        return multiplied
    request: Request = {
        "queries": multiplied[0],
        "documents": multiplied[1],
        "query_offsets": queries.offsets,
        "document_offsets": passages.offsets,
        "floor": floor,
        "out_dtype": torch.float32,
        "max_query_length": queries.longest,
        "max_document_length": passages.longest,
    }
    support = supports_maxsim_packed(**request)
    return request if support else Decline(support.reason)
