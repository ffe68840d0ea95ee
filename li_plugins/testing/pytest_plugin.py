"""A pytest plugin that turns a test red when a patched function quietly ran the original.

Without it, a parity test of a call that declines compares a library with itself and passes. It is active wherever
li-plugins is installed and costs nothing until something is enabled. To a test it offers

``@pytest.mark.allow_fallback(reason=...)``
    the original may run in this test;
``li_plugins_counts``
    a fixture with the calls and declines of this test;

and to a project the setting ``li_plugins_fallback = allow`` in place of ``fail``, the default.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from typing import Any

import pytest

SETTING = "li_plugins_fallback"
MARKER = "allow_fallback"

Tally = Mapping[str, tuple[int, Mapping[str, int]]]
"""Calls, and declines by reason, of each target since the process began."""


class Counts:
    """Calls and declines of the patched functions since the test began, its fixtures' setup included."""

    def __init__(self) -> None:
        self._before = _tally()

    @property
    def calls(self) -> dict[str, int]:
        """Calls by target, for the targets that were called: ``{"pylate.rank.rank:rerank": 1}``."""
        grown = {target: calls - self._was(target)[0] for target, (calls, _) in _tally().items()}
        return {target: calls for target, calls in grown.items() if calls}

    @property
    def declines(self) -> dict[str, dict[str, int]]:
        """Declines by target and reason, for the targets that declined."""
        found: dict[str, dict[str, int]] = {}
        for target, (_, declines) in _tally().items():
            before = self._was(target)[1]
            for reason, times in declines.items():
                if times > before.get(reason, 0):
                    found.setdefault(target, {})[reason] = times - before.get(reason, 0)
        return found

    def _was(self, target: str) -> tuple[int, Mapping[str, int]]:
        return self._before.get(target, (0, {}))


COUNTS = pytest.StashKey[Counts]()


def _tally() -> Tally:
    """Return the host's counters; nothing when no code has imported the host."""
    session = sys.modules.get("li_plugins.host.session")
    return {} if session is None else session.SESSION.counts()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the setting."""
    parser.addini(SETTING, "what a test becomes whose patched call ran the original: fail or allow", default="fail")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and check the setting."""
    config.addinivalue_line("markers", f"{MARKER}(reason): a patched call of this test may run the original")
    setting = config.getini(SETTING)
    if setting not in ("fail", "allow"):
        raise pytest.UsageError(f"{SETTING} takes fail or allow; found {setting!r}; correct the pytest configuration")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Begin to count before the test's fixtures are made."""
    item.stash[COUNTS] = Counts()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that passed although a patched call ran the original."""
    result = yield
    if item.config.getini(SETTING) == "fail" and not _allowed(item):
        declines = item.stash[COUNTS].declines
        if declines:
            lines = [f"  {target} declined {times}x: {reason}"
                     for target, reasons in declines.items() for reason, times in reasons.items()]  # fmt: skip
            remedy = f"if this is what the test is about, mark it @pytest.mark.{MARKER}(reason=...)"
            pytest.fail("\n".join(["a patched function ran the original:", *lines, remedy]), pytrace=False)
    return result


def _allowed(item: pytest.Item) -> bool:
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return False
    if not (marker.kwargs.get("reason") or marker.args):
        pytest.fail(f"@pytest.mark.{MARKER} needs a reason; found none; say why the original may run", pytrace=False)
    return True


@pytest.fixture
def li_plugins_counts(request: pytest.FixtureRequest) -> Counts:
    """Return the calls and declines of the patched functions in this test."""
    counts: Counts = request.node.stash[COUNTS]
    return counts
