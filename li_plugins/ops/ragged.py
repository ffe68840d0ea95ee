"""Ragged queries against ragged documents in launches of bounded size: every document moves once, none is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins.ops.arguments import Request
from li_plugins.ops.dispatch import Plan
from li_plugins.ops.maxsim import explain_maxsim_packed, maxsim_packed, supports_maxsim_packed

BYTES_PER_LAUNCH = {"cpu": 24 * 2**20, "cuda": 64 * 2**20}
"""Document embeddings that one launch takes, by device; bounds the copy that puts them one after the other.

On the CPU small enough for the C library to keep the memory for the next launch, glibc up to 32 MiB: what it maps anew
costs a page fault per page.
"""


def bytes_per_launch(device: torch.device | str | None) -> int:
    """Return the limit of a device; ``None`` is the CPU."""
    kind = torch.device(device or "cpu").type
    return BYTES_PER_LAUNCH.get(kind, BYTES_PER_LAUNCH["cpu"])


def requests(
    queries: Any,
    documents: Any,
    *,
    batch_size: Any,
    device: torch.device | str | None = None,
    out_dtype: torch.dtype | None = None,
    floored: bool = True,
) -> Iterator[Request | Decline]:
    """Yield one request for each run of documents that fits a launch, or a refusal before any.

    Stands for a library's loop over tiles of ``batch_size`` documents padded to the longest with zero rows, of which a
    query token may prefer one to all that the document has. Scores ``[A, run]`` come in the documents' order.

    Parameters
    ----------
    queries, documents
        A list of ``[length, d]``, or a tensor ``[texts, length, d]``.
    batch_size
        Which documents the library pads together: a positive integer.
    device
        Where to score; default: where the texts are.
    out_dtype
        Dtype of the scores; default: that of the embeddings.
    floored
        Whether a document that the library pads scores at least 0 for each query token, as there.
    """
    refusal = _unbatched(batch_size) or _unreadable("queries", queries) or _unreadable("documents", documents)
    if refusal:
        yield refusal
        return
    lists = [list(texts.unbind()) if isinstance(texts, Tensor) else list(texts) for texts in (queries, documents)]
    refusal = arguments.unlike("queries", lists[0]) or arguments.unlike("documents", lists[1])
    floors = _floors([len(document) for document in lists[1]], batch_size) if not refusal else None
    if refusal or floors is None:
        yield refusal or Decline("documents without tokens have no best token")
        return
    packed_queries = arguments.concatenated(lists[0], device)
    where = packed_queries.tokens.device
    sizes = [arguments.bytes_of(document) for document in lists[1]]
    for run in arguments.runs(sizes, bytes_per_launch(where)):
        # nothing here holds on to a request: the next is made when the memory of the last is free
        request = _request(packed_queries, lists[1][run], floors[run] if floored else [], device, out_dtype)
        is_refused = isinstance(request, Decline)
        yield request
        del request
        if is_refused:
            return


def scores(launches: Iterator[Request | Decline]) -> Tensor | Decline:
    """Run requests and return their scores side by side, ``[A, B]``, where they were computed."""
    columns = []
    for request in launches:
        if isinstance(request, Decline):
            return request
        columns.append(maxsim_packed(**request))
        del request
    return torch.cat(columns, dim=1)


def explained(launches: Iterator[Request | Decline]) -> Plan | Decline:
    """Return the plan of the first request, or why there is none."""
    request = next(launches)
    return request if isinstance(request, Decline) else explain_maxsim_packed(**request)


def _request(
    queries: arguments.Ragged,
    documents: list[Tensor],
    floor: list[bool],
    device: torch.device | str | None,
    out_dtype: torch.dtype | None,
) -> Request | Decline:
    packed = arguments.concatenated(documents, device)
    multiplied = arguments.as_multiplied(queries.tokens, packed.tokens, query_rank=2, document_rank=2)
    if isinstance(multiplied, Decline):
        return multiplied
    request: Request = {
        "queries": multiplied[0],
        "documents": multiplied[1],
        "query_offsets": queries.offsets,
        "document_offsets": packed.offsets,
        "floor": torch.tensor(floor, device=packed.tokens.device) if any(floor) else None,
        "out_dtype": out_dtype,
        "max_query_length": queries.longest,
        "max_document_length": packed.longest,
    }
    return arguments.supported(request, supports_maxsim_packed)


def _unbatched(batch_size: Any) -> Decline | None:
    if isinstance(batch_size, int) and batch_size > 0:
        return None
    return Decline(f"batch_size={batch_size!r}: needs a positive integer")


def _unreadable(side: str, texts: Any) -> Decline | None:
    if not isinstance(texts, (list, tuple, Tensor)) or (isinstance(texts, Tensor) and texts.ndim != 3):
        return Decline(f"{side} of type {type(texts).__name__}: needs a list of matrices or a tensor of rank 3")
    return None if len(texts) else Decline(f"no {side}: the library raises its own error")


def _floors(lengths: Sequence[int], batch_size: int) -> list[bool] | None:
    """Return which documents the library pads; ``None``: a tile has no token at all."""
    floors: list[bool] = []
    for start in range(0, len(lengths), batch_size):
        together = lengths[start : start + batch_size]
        longest = max(together)
        if longest == 0:
            return None
        floors += [length < longest for length in together]
    return floors
