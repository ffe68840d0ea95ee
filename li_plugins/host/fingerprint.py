"""Say which body and which parameters a function has, and how its parameters differ from a replacement's."""

from __future__ import annotations

import hashlib
import inspect
import io
import tokenize
from collections.abc import Callable, Iterator, Sequence
from inspect import Parameter
from tokenize import COMMENT, DEDENT, ENDMARKER, INDENT, NEWLINE, NL, STRING
from types import FunctionType
from typing import Any

from li_plugins.errors import BadInput

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_MARKS = {NEWLINE: "\n", INDENT: "\t", DEDENT: "\b"}
_FORMATTED = -1
"""The kind of an f-string: evaluated, so never a docstring."""

# An f-string is one token before Python 3.12 and many since; t-strings came with 3.14.
_OPENING = frozenset(getattr(tokenize, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(tokenize, name))
_CLOSING = frozenset(getattr(tokenize, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(tokenize, name))


def fingerprint(fn: Any) -> str:
    """Return eight hex digits that stand for what a function or class does, whatever its comments and layout.

    The digits begin the SHA-256 of the source's tokens, decorators included. Comments, blank lines and statements that
    are only a string (docstrings) are left out; ends of lines and indentation are one-byte marks; nothing stands
    between the tokens. The same source has the same fingerprint on every Python from 3.10.

    Raises
    ------
    BadInput
        There is no source to read: a C function, a function typed at a prompt, a library installed without it.
    """
    try:
        tokens = "".join(_essence(inspect.getsource(fn)))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError) as error:
        # In this order: no file; not made of Python; the lines that Python points at are no whole statement (twice).
        name = getattr(fn, "__qualname__", repr(fn))
        asked = f"the fingerprint of {name} needs its source"
        raise BadInput(asked, str(error), "install the library with its .py files") from error
    return hashlib.sha256(tokens.encode()).hexdigest()[:8]


def _essence(source: str) -> Iterator[str]:
    """Yield what is hashed: the tokens of each logical line, unless it holds nothing but strings."""
    line: list[str] = []
    only_strings = True
    for kind, text in _tokens(source):
        line.append(text)
        if kind in (INDENT, DEDENT):
            yield line.pop()
        elif kind != NEWLINE:
            only_strings = only_strings and kind == STRING
        else:
            if not only_strings:
                yield from line
            line, only_strings = [], True


def _tokens(source: str) -> Iterator[tuple[int, str]]:
    """Yield the kind and text of each token that counts, an f-string as one token, as it is written."""
    if source[:1].isspace():
        # A method. Not dedented: a string of its body may reach further left than its code.
        source = "if True:\n" + source
    lines = list(io.StringIO(source))
    depth, start = 0, (0, 0)
    for token in tokenize.generate_tokens(iter(lines).__next__):
        if token.type in _OPENING:
            start = start if depth else token.start
            depth += 1
        elif token.type in _CLOSING:
            depth -= 1
            if not depth:
                yield _FORMATTED, _between(lines, start, token.end)
        elif not depth and token.type not in (COMMENT, NL, ENDMARKER):
            formatted = token.type == STRING and "f" in token.string.partition(token.string[-1])[0].lower()
            yield _FORMATTED if formatted else token.type, _MARKS.get(token.type, token.string)


def _between(lines: Sequence[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """Return the source from ``(line, column)`` to ``(line, column)``; lines count from 1."""
    (first, left), (last, right) = start, end
    if first == last:
        return lines[first - 1][left:right]
    return "".join([lines[first - 1][left:], *lines[first : last - 1], lines[last - 1][:right]])


def parameters(fn: Callable[..., Any]) -> list[Parameter] | None:
    """Return the parameters of a callable, or ``None`` for a C callable that does not tell them.

    A Python function's are those of its code, whatever ``__signature__`` or ``__wrapped__`` claim.
    """
    if isinstance(fn, FunctionType):
        bare = FunctionType(fn.__code__, {}, fn.__name__, fn.__defaults__, fn.__closure__)
        bare.__kwdefaults__ = fn.__kwdefaults__
        fn = bare
    try:
        return list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # how `inspect` says that a C callable carries no signature
        return None


def signature_mismatch(target: Callable[..., Any], replacement: Callable[..., Any]) -> str | None:
    """Return the first way in which a replacement's parameters contradict a target's, or ``None`` when they agree.

    The target's parameters must lead the replacement's: the same names, kinds and order, and a default where the target
    has one. The replacement may have more, with defaults. A C callable without a signature agrees with anything.
    """
    theirs, ours = parameters(target), parameters(replacement)
    if theirs is None or ours is None:
        return None
    return next(_mismatches(theirs, ours), None)


def _mismatches(theirs: Sequence[Parameter], ours: Sequence[Parameter]) -> Iterator[str]:
    ours_by_name = {parameter.name: parameter for parameter in ours}
    ours_by_place = [parameter for parameter in ours if parameter.kind in _POSITIONAL]
    for place, wanted in enumerate(theirs):
        found = ours_by_name.get(wanted.name)
        if wanted.kind in _POSITIONAL:  # these lead every signature, so that `place` counts them alone
            found = ours_by_place[place] if place < len(ours_by_place) else found
        if found is None:
            yield f"parameter {wanted.name!r} is missing from the replacement"
        elif found.name != wanted.name:
            yield f"parameter {place + 1} is {wanted.name!r}, in the replacement {found.name!r}"
        elif found.kind != wanted.kind:
            yield f"parameter {wanted.name!r} is {wanted.kind.description}, in the replacement {found.kind.description}"
        elif (found.default is Parameter.empty) != (wanted.default is Parameter.empty):
            with_default = "the replacement" if wanted.default is Parameter.empty else "the target"
            yield f"parameter {wanted.name!r} has a default in {with_default} only"
    known = {parameter.name for parameter in theirs}
    takes_any_number = any(parameter.kind == Parameter.VAR_POSITIONAL for parameter in theirs)
    for extra in ours:
        if extra.name in known or extra.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        only_ours = f"parameter {extra.name!r}, which only the replacement has,"
        if extra.default is Parameter.empty:
            yield f"{only_ours} needs a default"
        elif takes_any_number and extra.kind in _POSITIONAL:
            yield f"{only_ours} would take one of the target's '*' arguments"
