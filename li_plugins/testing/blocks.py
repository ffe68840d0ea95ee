"""How many blocks of texts are in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor

from li_plugins.ops import arguments
from li_plugins.ops.arguments import Ragged


@contextmanager
def blocks_in_memory() -> Iterator[list[int]]:
    """Yield a list that gets, whenever texts are put one after the other, how many such blocks there are already."""
    concatenated = arguments.concatenated
    made: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def counted(*texts: Any, **keywords: Any) -> Ragged:
        counts.append(sum(block() is not None for block in made))
        found = concatenated(*texts, **keywords)
        made.append(weakref.ref(found.tokens))
        return found

    with mock.patch.object(arguments, "concatenated", counted):
        yield counts
