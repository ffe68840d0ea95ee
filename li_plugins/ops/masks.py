"""What a masked document token means: the four rules of the four libraries, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)  # no slots: Dynamo guards a default argument by weak reference (until torch>=2.6)
class MaskRule:
    """How a document mask and query weights enter the similarity grid.

    With ``s[i, j]`` the similarity of query token ``i`` and document token ``j``, ``w`` the query weights and ``m`` the
    document mask:

    ``ZERO``
        ``score = sum_i max_j (s[i, j] * w[i] * m[j])``: masks are factors, so a masked token is a candidate with
        similarity 0 and wins over negative ones (PyLate; float masks weigh).
    ``EXCLUDE``
        ``score = sum_i w[i] * max_{j: m[j]} s[i, j]``, and ``empty_score`` when no token is left
        (sentence-transformers: -1e9).
    ``FILL(value)``
        a masked token is a candidate with similarity ``value`` (colbert-ai: -9999); ``w`` multiplies the maximum.
    ``NONE``
        there is no document mask (colpali-engine: padding is zero rows); ``w`` multiplies the maximum.

    A document of length 0 (packed input, or ``document_lengths``) scores ``empty_score`` under every rule.
    """

    name: str
    fill: float = 0.0
    empty_score: float = 0.0

    NONE: ClassVar[MaskRule]
    ZERO: ClassVar[MaskRule]
    EXCLUDE: ClassVar[MaskRule]

    @classmethod
    def FILL(cls, value: float) -> MaskRule:  # noqa: N802 - reads as its sibling constants
        """Return the rule that gives masked tokens the similarity ``value``."""
        return cls("FILL", fill=float(value))


MaskRule.NONE = MaskRule("NONE")
MaskRule.ZERO = MaskRule("ZERO")
MaskRule.EXCLUDE = MaskRule("EXCLUDE", empty_score=-1e9)
