"""How MaxSim's Triton kernels are cut, in words: for the log, ``explain`` and the table of ``li-plugins tune``."""

from __future__ import annotations

from li_plugins.ops.launch import Options
from li_plugins.ops.maxsim import tuning, tuning_rows
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes


def described(sizes: Sizes, card: Card, phase: str) -> tuple[str, ...]:
    """Return lines on the launches of a phase of the dispatcher: ``scores``, ``winners`` or ``backward``."""
    if phase == "backward":
        lines = [
            f"queries' gradient: {query_gradient(tuning.query_gradient(sizes, card))}{_source('queries', sizes, card)}"
        ]
        if tuning.sorting(sizes) is None:
            return (*lines, f"documents' gradient: winners not sorted; {document_gradient(sizes)}")
        adding = sorted_gradient(tuning.sorted_gradient(sizes, card))
        return (*lines, f"documents' gradient: winners sorted; {adding}{_source('documents', sizes, card)}")
    want_winners = phase == "winners"
    halved = "fp32 as two fp16 numbers each, " if sizes.is_halved else ""
    line = f"{halved}{forward(tuning.forward(sizes, want_winners, card))}{_source(phase, sizes, card)}"
    if not want_winners:
        return (line,)
    return line, f"winners {'sorted' if tuning.sorting(sizes) is not None else 'not sorted'} in the backward"


def forward(chosen: tuning.Forward) -> str:
    """Return a forward's tiles: query tokens by document tokens."""
    per_program = f"{chosen.documents} document{'' if chosen.documents == 1 else 's'} per program"
    return f"tiles of {chosen.blocks.ROWS} rows x {chosen.blocks.BLOCK_N} columns, {per_program}, " + options(
        chosen.options
    )


def query_gradient(chosen: tuning.QueryGradient) -> str:
    """Return the blocks of the queries' gradient."""
    return f"{chosen.ROWS} rows x {chosen.BLOCK_D} dimensions, {chosen.VISITS} documents at a time, " + options(
        chosen.options
    )


def sorted_gradient(chosen: tuning.SortedGradient) -> str:
    """Return the blocks of the documents' gradient from sorted winners."""
    return f"{chosen.ENTRIES} rows x {chosen.BLOCK_D} dimensions at a time, {options(chosen.options)}"


def document_gradient(sizes: Sizes) -> str:
    """Return the blocks of the documents' gradient from winners as they are."""
    chosen = tuning.document_gradient(sizes)
    cut = f"{chosen.QUERY_TOKENS} query tokens x {chosen.BLOCK_N} document tokens x {chosen.BLOCK_D} dimensions"
    return f"{cut}, {options(chosen.options)}"


def options(chosen: Options) -> str:
    """Return how a kernel is compiled."""
    registers = "" if chosen.maxnreg is None else f", at most {chosen.maxnreg} registers"
    stages = f"{chosen.num_stages} stage{'' if chosen.num_stages == 1 else 's'}"
    return f"{chosen.num_warps} warp{'' if chosen.num_warps == 1 else 's'}, {stages}{registers}"


def _source(phase: str, sizes: Sizes, card: Card) -> str:
    return "" if tuning_rows.stored(phase, sizes, card) is None else " (stored by li-plugins tune)"
