"""What a token that was not retrieved means to an XTR score: the two rules of the two libraries, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)  # no slots, as MaskRule
class XtrRule:
    """How the retrieved similarities of a query token and a document become one, and what their sum is divided by.

    ``RETRIEVED``
        the greatest of the retrieved similarities, 0 where there is none (the imputation of Lee et al., 2023, equation
        5); divided by the number of query tokens that retrieved a token of the document, at least 1
        (sentence-transformers).
    ``POSITIVE``
        a token that was not retrieved is a candidate with similarity 0, so it wins over negative ones; divided by the
        number of maxima above 0, at least 0.001 (PrimeQA, PyLate).
    """

    name: str
    least_count: float

    RETRIEVED: ClassVar[XtrRule]
    POSITIVE: ClassVar[XtrRule]


XtrRule.RETRIEVED = XtrRule("RETRIEVED", 1.0)
XtrRule.POSITIVE = XtrRule("POSITIVE", 0.0010000000474974513)  # 0.001 in float32, in which both libraries count
