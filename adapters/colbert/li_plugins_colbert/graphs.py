"""Searches of one kind as CUDA graphs: what a search launches between its waits is launched by two calls of the host.

A search of one query is some thirty short launches, which a GPU works off faster than a host can make them. Most depend
on nothing but settings and the query's shape: all before the candidates are known, and all after the first pruning, as
it leaves the same number of passages each time. These are captured when a kind of search has come a few times.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from li_plugins.ops import recipes

logger = logging.getLogger("li_plugins.colbert")

CAPTURED = 8
"""Which search of a kind is captured: that takes as long as a few searches."""
MOST = 16
"""Kinds of searches that an index has graphs for; further ones are launched one by one."""


class Graph:
    """What a function launches for inputs of one shape; inputs and results have places of their own.

    Inputs that are ``standing``, the results of another graph, are read where they are.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], standing: Sequence[Tensor] = ()) -> None:
        self.inputs = [tensor if _is_among(tensor, standing) else tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            # other threads may go on as they like
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
    """The kinds of searches that an index has seen, and their graphs; one search at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held from the first input of a search to its results on the host."""
        self._kinds: dict[Hashable, Kind] = {}

    def kind(self, *key: Hashable) -> Kind | None:
        """Return the kind of a search, counted; ``None`` where there are too many."""
        key = (recipes.generation(), torch.cuda.current_device(), *key)
        found = self._kinds.get(key)
        if found is None:
            if len(self._kinds) >= MOST:
                return None
            found = self._kinds[key] = Kind()
        found.searches += 1
        return found


class Kind:
    """Searches whose launches are the same."""

    def __init__(self) -> None:
        self.searches = 0
        self._graphs: dict[str, Graph | None] = {}

    def run(self, part: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return ``function(*inputs)``, by a graph where this part of the search has one or gets one now."""
        if part in self._graphs:
            graph = self._graphs[part]
            return function(*inputs) if graph is None else graph(*inputs)
        if self.searches < CAPTURED:
            return function(*inputs)
        standing = [tensor for graph in self._graphs.values() if graph is not None for tensor in graph.results]
        try:
            graph = Graph(function, inputs, standing)
        except RuntimeError as error:
            logger.info("%s is not captured, and is launched as before: %s", part, error)
            self._graphs[part] = None
            return function(*inputs)
        self._graphs[part] = graph
        return graph(*inputs)


def _is_among(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    return any(tensor is other for other in others)
