"""Searches of one kind as a CUDA graph: one call of the host launches all of a search.

A search of one query is some thirty short launches, which a GPU works off faster than a host can make them. They depend
on nothing but settings, the query's shape and how many candidates there are. So a graph has room for more candidates
than have come; it is captured when a kind of search has come a few times. A query that has even more goes the long way,
and makes room for those after it.

While torch captures, its random numbers on that GPU are not to be had, for other threads either (up to torch 2.11, they
get an error). Nobody should meet that who did not ask for it: unless the variable says so, there are graphs only while
no other thread runs Python, so that nobody is there to ask for random numbers.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
from torch import Tensor

from li_plugins.ops import dispatch, recipes

logger = logging.getLogger("li_plugins.colbert")

VARIABLE = "LI_PLUGINS_COLBERT_GRAPHS"
CAPTURED = 8
"""Which run is captured: that takes as long as a few searches, and all kernels have to be loaded before."""
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
    """What a function launches for queries of one shape; queries and result have places of their own."""

    def __init__(self, function: Callable[[Tensor], Tensor], queries: Tensor) -> None:
        self.queries = queries.clone()
        self._graph = torch.cuda.CUDAGraph()
        here, aside = torch.cuda.current_stream(), _aside(torch.cuda.current_device())
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            function(self.queries)  # so that products have a workspace on this stream, which is no graph's own
            with torch.inference_mode(False):  # what torch allocates for all graphs is written to outside of it, too
                self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.result = function(self.queries)
            finally:
                self._graph.capture_end()
        here.wait_stream(aside)

    def __call__(self, queries: Tensor) -> Tensor:
        """Return the result, which the next call overwrites."""
        self.queries.copy_(queries)
        self._graph.replay()
        return self.result


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
    """Searches whose launches are the same, with room for so many candidates."""

    def __init__(self) -> None:
        self.room = 0
        """How many candidates there may be; 0: it is not known yet how many come."""
        self._runs = 0
        self._graph: Graph | None = None

    def make_room(self, count: int) -> None:
        """Make room for ``count`` candidates and a quarter more at least, and forget the graph, which has less."""
        step = max(64, 1 << max(0, count.bit_length() - 4))
        wanted = count + count // 4 + 1
        self.room = -(-wanted // step) * step
        self._runs, self._graph = 0, None

    def run(self, function: Callable[[Tensor], Tensor], queries: Tensor) -> Tensor:
        """Return ``function(queries)``, by a graph where there is one or it is time for one."""
        if self._graph is not None:
            return self._graph(queries)
        self._runs += 1
        if self._runs < CAPTURED - 1:
            return function(queries)
        if self._runs == CAPTURED - 1:
            before = dispatch.counters()
            results = function(queries)
            others = sorted({kernel for _, kernel in dispatch.counters() - before} - CAPTURABLE)
            if others:  # of this search, or of another thread
                self._runs = 0
                logger.info("no CUDA graph of a search yet: %s ran meanwhile", ", ".join(others))
            return results
        if _failures:
            return function(queries)
        try:
            self._graph = Graph(function, queries)
        except Exception as error:
            _failures.append(str(error))
            logger.warning("li_plugins: no CUDA graphs of searches from now on, since a capture failed: %s", error)
            return function(queries)
        return self._graph(queries)


@lru_cache
def _aside(device: int) -> torch.cuda.Stream:
    """Return the stream of a device that searches are captured on."""
    return torch.cuda.Stream(device)


def _is_bystander(thread: threading.Thread) -> bool:
    """Tell whether it is the thread that wakes tqdm's progress bars, which colbert-ai's own search shows."""
    return type(thread).__module__.partition(".")[0] == "tqdm"
