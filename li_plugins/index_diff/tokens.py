"""Codes, residual bytes, and the embeddings that both stand for: one pass over the tokens of two folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from li_plugins.index_diff.aligned import Rows, aligned, comparable
from li_plugins.index_diff.capture import Capture
from li_plugins.index_diff.drift import name
from li_plugins.index_diff.finding import Finding, State, Tolerance, share, worst
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.index_diff.matching import Matching
from li_plugins.ops import decompress
from li_plugins.ops.codec import bits

COSINE_STEPS = 20_000
"""Places of the histogram of cosines, from -1 to 1: what a quantile of any number of tokens is read from."""


@dataclass
class _Sums:
    """What is counted over the blocks."""

    tokens: int = 0
    same: int = 0
    matched: int = 0
    ties: int = 0
    greatest_loss: float = 0.0
    numbers: int = 0
    moved: int = 0
    greatest_move: int = 0
    least_cosine: float = 1.0
    cosine: float = 0.0


def compare_tokens(
    a: IndexFolder,
    b: IndexFolder,
    matching: Matching,
    tolerance: Tolerance,
    captures: tuple[Capture, Capture] | None = None,
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> list[Finding]:
    """Return what holds of codes, residuals and reconstruction, of the passages with as many tokens in both.

    A code of B stands for the centroid of A that ``matching`` pairs with its own. Where two codes still part, the
    similarity that B's choice loses is measured by A's centroids, on the mean of the two embeddings: those that were
    captured, where they were, else those decoded. A *tie* loses at most ``tolerance.captured_tie`` or
    ``tolerance.tie``. Residual bytes are compared as buckets, where codes agree. The cosine is that of
    the decoded embeddings, for all tokens.
    """
    kept = comparable(a, b)
    sums, histogram = _Sums(), torch.zeros(COSINE_STEPS + 1, dtype=torch.int64)
    pass_ = _Pass(a, b, matching, tolerance.tie if captures is None else tolerance.captured_tie)

    def read(folder: IndexFolder, chunk: int) -> Rows:
        stored = folder.codes(chunk), folder.residuals(chunk)
        return stored if captures is None else (*stored, captures[0 if folder is a else 1].embeddings(chunk))

    for first, second in aligned(a, b, kept, read, on_tokens):
        pass_.add(sums, histogram, first, second)
    if not sums.tokens:
        text = "no passage has as many tokens in both"
        return [Finding(artifact, "not compared", text) for artifact in ("codes", "residuals", "reconstruction")]
    left_out = max(len(a.lengths), len(b.lengths)) - int(kept.sum())
    dtypes = [name(folder.codes(0).dtype) for folder in (a, b)]
    codes = _codes(sums, matching, left_out, dtypes)
    return [codes, _residuals(sums, a.nbits, b.nbits, codes, tolerance), _reconstruction(sums, histogram, tolerance)]


class _Pass:
    """What the blocks share."""

    def __init__(self, a: IndexFolder, b: IndexFolder, matching: Matching, tie: float) -> None:
        self._a, self._b, self._matching, self._tie = a.codec, b.codec, matching, tie
        tables = (bits.buckets_of_bytes(codec.nbits, torch.device("cpu")) for codec in (self._a, self._b))
        self._buckets_a, self._buckets_b = (table.to(torch.int16) for table in tables)

    def add(self, sums: _Sums, histogram: Tensor, first: Rows, second: Rows) -> None:
        """Count one block."""
        (mine, bytes_a, *captured_a), (codes_b, bytes_b, *captured_b) = first, second
        mine, codes_b = mine.long(), codes_b.long()
        theirs = self._matching.a_of_b[codes_b]
        same = mine == theirs
        sums.tokens += len(mine)
        sums.same += int((mine == codes_b).sum())
        sums.matched += int(same.sum())
        rows_a, rows_b = (
            decompress(codes, residuals, codec.centroids, codec.weights, nbits=codec.nbits)
            for codes, residuals, codec in ((mine, bytes_a, self._a), (codes_b, bytes_b, self._b))
        )
        known = ~same & (theirs >= 0)
        if bool(known.any()):
            seen_a, seen_b = (captured_a[0].float(), captured_b[0].float()) if captured_a else (rows_a, rows_b)
            middle = (seen_a[known] + seen_b[known]) / 2
            centroids = self._a.centroids
            loss = (middle * (centroids[mine[known]] - centroids[theirs[known]])).sum(1).abs()
            sums.ties += int((loss <= self._tie).sum())
            sums.greatest_loss = max(sums.greatest_loss, float(loss.max()))
        if self._a.nbits == self._b.nbits and bool(same.any()):
            buckets_a = bits.unpack(bytes_a[same], self._buckets_a)
            buckets_b = bits.unpack(bytes_b[same], self._buckets_b)
            moves = (buckets_a - buckets_b).abs()
            sums.numbers += moves.numel()
            sums.moved += int((moves != 0).sum())
            sums.greatest_move = max(sums.greatest_move, int(moves.max()))
        cosine = (rows_a * rows_b).sum(1).clamp_(-1, 1)
        sums.cosine += float(cosine.double().sum())
        sums.least_cosine = min(sums.least_cosine, float(cosine.min()))
        places = cosine.add(1).mul(COSINE_STEPS / 2).round().long()
        histogram += torch.bincount(places, minlength=len(histogram))


def _codes(sums: _Sums, matching: Matching, left_out: int, dtypes: list[str]) -> Finding:
    apart = sums.tokens - sums.matched
    far = apart - sums.ties
    state: State
    if sums.same == sums.tokens:
        state, text = "identical", "the same centroid for each token"
    elif not apart:
        state = "reordered"
        text = f"the same for each token once centroids are numbered alike ({share(sums.same, sums.tokens)} as stored)"
    else:
        state = "differs" if far else "close"
        text = f"{share(apart, sums.tokens)} of tokens at another centroid"
        text += f", {share(sums.ties, apart)} of these a tie" if sums.ties else ", none of these a tie"
        if matching.moved:
            text += ", once centroids are numbered alike"
    if dtypes[0] != dtypes[1]:
        state, text = worst("close", state), f"{text}; stored as {dtypes[0]} and {dtypes[1]}"
    if left_out:
        text += f"; {left_out} passages left out, whose lengths differ"
    figures = {
        "tokens": sums.tokens,
        "dtypes": dtypes,
        "same_as_stored": sums.same / sums.tokens,
        "same_centroid": sums.matched / sums.tokens,
        "ties": sums.ties,
        "no_ties": far,
        "greatest_loss": sums.greatest_loss,
        "passages_left_out": left_out,
    }
    return Finding("codes", state, text, figures)


def _residuals(sums: _Sums, nbits: int, their_nbits: int, codes: Finding, tolerance: Tolerance) -> Finding:
    if nbits != their_nbits:
        text = f"{nbits} and {their_nbits} bits for a number: compare the reconstruction"
        return Finding("residuals", "differs", text, {"nbits": [nbits, their_nbits]})
    figures = {
        "nbits": nbits,
        "numbers": sums.numbers,
        "moved": sums.moved / sums.numbers if sums.numbers else 0.0,
        "greatest_move": sums.greatest_move,
    }
    if not sums.numbers:
        return Finding("residuals", "not compared", "no token is at the same centroid in both", figures)
    close = sums.greatest_move <= 1 and sums.moved <= tolerance.buckets * sums.numbers
    own: State = "identical" if not sums.moved else "close" if close else "differs"
    what = "the same buckets" if not sums.moved else f"{share(sums.moved, sums.numbers)} of numbers in another bucket"
    if sums.moved:
        what += f", up to {sums.greatest_move} away" if sums.greatest_move > 1 else ", the next one"
    where = (
        "" if sums.matched == sums.tokens else f", at the {share(sums.matched, sums.tokens)} of tokens with one code"
    )
    # bytes belong to a centroid: where that is another one, or has another number, so is what is left
    return Finding("residuals", worst(own, codes.state), what + where, {**figures, "where_codes_agree": own})


def _reconstruction(sums: _Sums, histogram: Tensor, tolerance: Tolerance) -> Finding:
    mean = sums.cosine / sums.tokens
    rank = max(1, round(sums.tokens / 100))
    first_percent = int((histogram.cumsum(0) >= rank).nonzero()[0, 0]) * 2 / COSINE_STEPS - 1
    same = sums.least_cosine >= 1 - 1e-6
    close = mean >= tolerance.mean_cosine and sums.least_cosine >= tolerance.least_cosine
    text = (
        f"cosine of the decoded embeddings {mean:.6f} on average, {first_percent:.4f} at 1 %, {sums.least_cosine:.4f}"
        " at least"
    )
    figures = {"mean_cosine": mean, "cosine_at_1_percent": first_percent, "least_cosine": sums.least_cosine}
    return Finding("reconstruction", "identical" if same else "close" if close else "differs", text, figures)
