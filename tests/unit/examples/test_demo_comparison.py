"""Both sides run the same stage, taking turns, each with its own functions in force."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from retrieval_demo import comparison
from retrieval_demo.comparison import OFF, ON, compare


class Library:
    """Stands in for li-plugins: knows whether it is suspended, and counts the calls that reach it."""

    def __init__(self):
        self.patched, self.calls, self.declines = True, 0, 0

    @contextmanager
    def suspended(self):
        self.patched = False
        yield
        self.patched = True

    def status(self):
        return SimpleNamespace(rows=[SimpleNamespace(target="score", calls=self.calls, declines=self.declines)])


class Work:
    """A stage that notes who ran."""

    title, repetitions = "work", 3

    def __init__(self, inputs):
        self.library, self.log = inputs.library, inputs.log

    def warm_up(self, side):
        self.run(side, -1)

    def run(self, side, repetition):
        assert self.library.patched == (side == ON)
        self.log.append((side, repetition))
        if self.library.patched:
            self.library.calls += 2
            self.library.declines += repetition == 2
        return side, repetition


@pytest.fixture
def inputs(monkeypatch):
    library = Library()
    monkeypatch.setattr(comparison, "li_plugins", library)
    monkeypatch.setattr(comparison, "method", lambda device: "rss")
    return SimpleNamespace(library=library, log=[], device="cpu")


def test_sides_take_turns_at_going_first_after_a_warm_up(inputs):
    compare(Work, inputs, lambda count: None)
    assert inputs.log == [(OFF, -1), (ON, -1), (OFF, 0), (ON, 0), (ON, 1), (OFF, 1), (OFF, 2), (ON, 2)]


def test_every_run_is_kept_with_its_side(inputs):
    told = []
    found = compare(Work, inputs, told.append)
    assert told == [1] * 6
    for side in (OFF, ON):
        assert found.sides[side].results == [(side, 0), (side, 1), (side, 2)]
        assert len(found.sides[side].seconds) == 3


def test_answers_are_counted_without_the_warm_up(inputs):
    found = compare(Work, inputs, lambda count: None)
    assert (found.served["score"], found.declined["score"]) == (5, 1)
