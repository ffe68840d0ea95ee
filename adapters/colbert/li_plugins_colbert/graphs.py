"""Searches of one kind as CUDA graphs: two calls of the host launch most of a search.

A search of one query is some thirty short launches, which a GPU works off faster than a host can make them. Most depend
on nothing but settings and the query's shape: all before the candidates are known, and all after the first pruning, as
it leaves the same number of passages each time. These are captured when a kind of search has come a few times.

While torch captures, its random numbers on that GPU are not to be had, for other threads either (up to torch 2.11, they
get an error). Nobody should meet that who did not ask for it: unless the variable says so, there are graphs only while
no other thread runs Python, so that nobody is there to ask for random numbers.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import dispatch, recipes

logger = logging.getLogger("li_plugins.colbert")

VARIABLE = "LI_PLUGINS_COLBERT_GRAPHS"
CAPTURED = 8
"""Which run of a part is captured: that takes as long as a few searches, and all kernels have to be loaded before."""
MOST = 16
"""Kinds of searches that an index has graphs for; then the one that was longest not searched for is forgotten."""

CAPTURABLE = {"triton"}
"""Kernels that are known to launch alone; one that waits for the device breaks a capture."""

lock = threading.RLock()
"""Held from the first input of a search to its results on the host; torch captures one graph of a process at a time."""
_failures: list[str] = []
"""Why a capture failed, after which torch may be in no state for another."""


def are_used() -> bool:
    """Tell whether a search now may be made of graphs: as the user says, else where this is the only thread."""
    if _failures:
        return False
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked not in ("", "auto"):
        return asked == "1"
    return threading.active_count() == 1 or all(
        thread is threading.current_thread() or _is_bystander(thread) for thread in threading.enumerate()
    )


class Graph:
    """What a function launches for inputs of one shape; inputs and results have places of their own.

    Inputs that are ``standing``, the results of another graph, are read where they are.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], standing: Sequence[Tensor] = ()) -> None:
        self.inputs = [tensor if _is_among(tensor, standing) else tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        here, aside = torch.cuda.current_stream(), _aside(torch.cuda.current_device())
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            function(*self.inputs)  # so that products have a workspace on this stream, which is no graph's own
            with torch.inference_mode(False):  # what torch allocates for all graphs is written to outside of it, too
                self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.results = function(*self.inputs)
            finally:
                self._graph.capture_end()
        here.wait_stream(aside)

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the results, which the next call overwrites."""
        for place, tensor in zip(self.inputs, inputs, strict=True):
            if place is not tensor:
                place.copy_(tensor)
        self._graph.replay()
        return self.results


class Searches:
    """The kinds of searches that an index has seen lately, and their graphs."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, Kind] = {}
        self._generation = recipes.generation()

    def __reduce__(self) -> tuple[type[Searches], tuple[()]]:
        """Leave graphs behind: they are of this process."""
        return Searches, ()

    def kind(self, *key: Hashable) -> Kind:
        """Return the kind of a search; all are forgotten when other kernels may be chosen."""
        if self._generation != recipes.generation():
            self._kinds.clear()
            self._generation = recipes.generation()
        found = self._kinds.pop(key, None) or Kind()
        self._kinds[key] = found
        if len(self._kinds) > MOST:
            del self._kinds[next(iter(self._kinds))]
        return found


class Kind:
    """Searches whose launches are the same."""

    def __init__(self) -> None:
        self._runs: dict[str, int] = {}
        self._graphs: dict[str, Graph] = {}

    def run(self, part: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return ``function(*inputs)``, by a graph where this part of the search has one or gets one now."""
        if part in self._graphs:
            return self._graphs[part](*inputs)
        runs = self._runs[part] = self._runs.get(part, 0) + 1
        if runs < CAPTURED - 1:
            return function(*inputs)
        if runs == CAPTURED - 1:
            before = dispatch.counters()
            results = function(*inputs)
            others = sorted({kernel for _, kernel in dispatch.counters() - before} - CAPTURABLE)
            if others:  # of this search, or of another thread
                self._runs[part] = 0
                logger.info("no CUDA graph of a search yet: %s ran meanwhile", ", ".join(others))
            return results
        if _failures:
            return function(*inputs)
        standing = [tensor for graph in self._graphs.values() for tensor in graph.results]
        try:
            graph = self._graphs[part] = Graph(function, inputs, standing)
        except Exception as error:
            _failures.append(str(error))
            logger.warning("li_plugins: no CUDA graphs of searches from now on, since a capture failed: %s", error)
            return function(*inputs)
        return graph(*inputs)


@lru_cache
def _aside(device: int) -> torch.cuda.Stream:
    """Return the stream of a device that searches are captured on."""
    return torch.cuda.Stream(device)


def _is_bystander(thread: threading.Thread) -> bool:
    """Tell whether it is the thread that wakes tqdm's progress bars, which colbert-ai's own search shows."""
    return type(thread).__module__.partition(".")[0] == "tqdm"


def _is_among(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    return any(tensor is other for other in others)
