"""The settings: which variables there are, what they say, and what is wrong with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from li_plugins.errors import BadInput

logger = logging.getLogger("li_plugins")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable, as ``doctor`` and the docs show it."""

    name: str
    values: str
    default: str
    meaning: str


VARIABLES = (
    Variable(
        "LI_PLUGINS",
        "`1`, `0`, or names: `pylate,colpali`",
        "unset",
        "Enables all adapters, or the named ones, at the end of `import torch`; `0` keeps everything off, "
        "whatever the code asks for. An opt-in adapter has to be named: `1,colbert-compat`.",
    ),
    Variable(
        "LI_PLUGINS_STRICT",
        "`1`, `0`",
        "`0`",
        "Raises where a broken plugin, a refused patch or a kernel that does not compile would be reported and "
        "skipped.",
    ),
    Variable(
        "LI_PLUGINS_UNTESTED",
        "`1`, `0`",
        "`0`",
        "Patches releases and function bodies that no adapter was tested with; a changed signature is refused all "
        "the same.",
    ),
    Variable(
        "LI_PLUGINS_LOG",
        "`debug`, `info`, `warning`",
        "unset",
        "Level of the logger `li_plugins`, shown on stderr unless the program has logging handlers of its own.",
    ),
    Variable(
        "LI_PLUGINS_BACKEND",
        "a kernel's name: `triton`",
        "unset",
        "The kernel to prefer wherever it supports the request; read by `li_plugins.ops`.",
    ),
    Variable(
        "LI_PLUGINS_WINNERS",
        "MiB",
        "`8192`",
        "Most memory that one MaxSim of all queries with all documents keeps for its backward. Where it would be more, "
        "nothing is kept, and each gradient costs one more forward; read by `li_plugins.ops` when it is imported.",
    ),
    Variable(
        "LI_PLUGINS_TUNING",
        "a file's path, `0`",
        "`~/.cache/li_plugins/tuning.json`",
        "Where `li-plugins tune` stores blocks that are faster on this machine's GPU, and where they are read; `0`: "
        "the built-in blocks are used; read by `li_plugins.ops`.",
    ),
    Variable(
        "LI_PLUGINS_COLPALI_FLOOR",
        "`1`, `0`",
        "`1`",
        "`0`: `score_multi_vector` of colpali-engine scores a passage by its own tokens alone, whatever the passages "
        "beside it. Else it is scored as if padded, as the library does: at least 0 for each query token.",
    ),
    Variable(
        "LI_PLUGINS_COLPALI_BOUNDS",
        "`now`, `later`",
        "`now`",
        "`later`: the losses of colpali-engine report normalised scores out of bounds when the GPU has computed them, "
        "with a later step or at exit. Else each step waits for the GPU, once for each matrix of scores, to do so at "
        "once.",
    ),
    Variable(
        "LI_PLUGINS_COLBERT_GRAPHS",
        "`auto`, `1`, `0`",
        "`auto`",
        "`1`: a search of colbert-ai on a GPU is one CUDA graph from the ninth of a kind on. Searches take turns then, "
        "those of several threads as well. While a graph is captured, which takes some milliseconds, torch (up to "
        "2.11) has no random numbers of that GPU for other threads: they get an error. So `auto` uses graphs only "
        "while no other thread runs Python (that of tqdm's bars aside), `0` never. Each of up to 16 kinds keeps a "
        "query's scores with all centroids and nine bytes for each passage.",
    ),
)

Switch = Literal["unset", "off", "all", "some"]

_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one ``enable``: arguments win over the environment, which wins over the defaults.

    Parameters
    ----------
    switch
        What ``LI_PLUGINS`` says: ``"unset"``, ``"off"``, ``"all"``, or ``"some"`` adapters, those in ``names``.
    names
        The adapters that ``LI_PLUGINS`` names; beside ``"all"``, which has no opt-in adapter, those that come on top.
    strict, untested
        See ``VARIABLES``.
    log
        Level of the logger: ``"debug"``, ``"info"``, ``"warning"`` or empty (left alone).
    problems
        Values that were not understood; the default is in force for them.
    """

    switch: Switch = "unset"
    names: tuple[str, ...] = ()
    strict: bool = False
    untested: bool = False
    log: str = ""
    problems: tuple[BadInput, ...] = ()

    @classmethod
    def read(
        cls, environ: Mapping[str, str] | None = None, *, strict: bool | None = None, untested: bool | None = None
    ) -> Config:
        """Return the settings in force; a bad value becomes a problem, never an exception.

        Parameters
        ----------
        environ
            The environment; ``os.environ`` by default.
        strict, untested
            Override the variables of the same names when not ``None``.
        """
        environ = os.environ if environ is None else environ
        problems = list(_misspelt(environ))
        switch, names = _parse_switch(environ.get("LI_PLUGINS", ""))
        log = environ.get("LI_PLUGINS_LOG", "").strip().lower()
        if log and log not in _LEVELS:
            problems.append(_problem(environ, "LI_PLUGINS_LOG", "debug, info or warning"))
            log = ""
        flags = {
            name: _parse_flag(environ, variable, problems)
            for name, variable in (("strict", "LI_PLUGINS_STRICT"), ("untested", "LI_PLUGINS_UNTESTED"))
        }
        return cls(
            switch=switch,
            names=names,
            strict=flags["strict"] if strict is None else strict,
            untested=flags["untested"] if untested is None else untested,
            log=log,
            problems=tuple(problems),
        )


def _parse_switch(text: str) -> tuple[Switch, tuple[str, ...]]:
    word = text.strip().lower()
    if word in _NO:
        return "off", ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    adapters = tuple(name for name in names if name.lower() not in (*_YES, "all"))
    if len(adapters) < len(names):
        return "all", adapters
    return ("some", names) if names else ("unset", ())


def spelled(everything: bool, names: Iterable[str]) -> str:
    """Return what ``LI_PLUGINS`` says for all adapters, or only the named ones, as ``Config.read`` reads it."""
    return ",".join([*(["1"] if everything else []), *dict.fromkeys(names)])


def _parse_flag(environ: Mapping[str, str], variable: str, problems: list[BadInput]) -> bool:
    word = environ.get(variable, "").strip().lower()
    if word and word not in (*_YES, *_NO):
        problems.append(_problem(environ, variable, "1 or 0"))
    return word in _YES


def _problem(environ: Mapping[str, str], variable: str, allowed: str) -> BadInput:
    return BadInput(f"{variable} takes {allowed}", repr(environ[variable]), "correct it or unset it; it is ignored")


def _misspelt(environ: Mapping[str, str]) -> list[BadInput]:
    """Return a problem for each variable that reads almost as one of ours; plugins may have others of their own."""
    known = [variable.name for variable in VARIABLES]
    found = []
    for name in sorted(environ):
        if name.startswith("LI_PLUGINS_") and name not in known:
            nearest = get_close_matches(name, known[1:], n=1, cutoff=0.85)
            if nearest:
                found.append(BadInput(f"no variable is called {name}", "it set", f"did you mean {nearest[0]}?"))
    return found


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # not generic at run time on 3.10
    """Write to stderr, and keep silent in a program whose root logger already shows our records."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not logging.getLogger().handlers and bool(super().filter(record))


def set_up_logging(config: Config) -> None:
    """Give the logger ``li_plugins`` the level that ``LI_PLUGINS_LOG`` names and a handler on stderr, once."""
    if not config.log:
        return
    logger.setLevel(_LEVELS[config.log])
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


def markdown_table() -> str:
    """Return the table of variables as the docs carry it."""
    rows = [f"| `{v.name}` | {v.values} | {v.default} | {v.meaning} |" for v in VARIABLES]
    return "\n".join(["| variable | values | default | meaning |", "|---|---|---|---|", *rows])
