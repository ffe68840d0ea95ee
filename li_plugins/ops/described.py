"""What the dispatcher reads of a problem, for operations without masks, query weights and lengths."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from li_plugins.ops.masks import MaskRule


class Described:
    """Base of a problem; the problem says what its two largest inputs and its result are.

    Dispatch plans by the device and dtype of ``queries`` and by the width of their rows, whatever a row stands for.
    """

    layout: ClassVar[int] = 0
    rule: ClassVar[MaskRule] = MaskRule.NONE
    query_weights: ClassVar[None] = None
    document_mask: ClassVar[None] = None
    document_lengths: ClassVar[None] = None
    floor: ClassVar[None] = None

    @property
    def queries(self) -> Tensor:
        """The rows that are served, ``[..., d]``."""
        raise NotImplementedError

    @property
    def documents(self) -> Tensor:
        """What they are compared with, or made of."""
        raise NotImplementedError

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        raise NotImplementedError

    @property
    def max_query_length(self) -> int:
        """How many numbers stand behind one element of the result, for the count of elements."""
        return 1


def fields(problem: Any) -> tuple[Any, ...]:
    """Return what a problem consists of, in order: the arguments of its op."""
    return tuple([getattr(problem, field.name) for field in dataclasses.fields(problem)])
