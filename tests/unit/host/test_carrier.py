"""Functions on their way to another process, on fake libraries and plugins."""

from __future__ import annotations

import pickle
from contextlib import suppress

import pytest

from li_plugins import api
from li_plugins.errors import RestoreRefused
from li_plugins.host.session import Session

CHILD = """
    import pickle, sys
    function = pickle.loads(bytes.fromhex(sys.argv[1]))
    import li_plugins
    print(function("x"), type(function).__name__)
    print({row.adapter: row.state for row in li_plugins.status().rows if row.adapter in ("fake", "other")})
"""


@pytest.fixture
def session(site, monkeypatch):
    monkeypatch.setattr(api, "carriers", [])
    found = Session()
    yield found
    with suppress(RestoreRefused):
        found.close()


def outcome(site, function, **environment: str) -> list[str]:
    done = site.python(CHILD, pickle.dumps(function).hex(), **environment)
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def score():
    from fakelib.scores import score

    return score


def test_here_it_is_the_function(site, session):
    site.adapter()
    session.enable()
    carried = api.carried(score())
    assert carried is not score()
    assert carried("x", y=2) == ("ours", "x", 2)
    assert carried.__name__ == "score"


def test_there_it_is_the_function_with_what_is_enabled_here(site, session):
    site.adapter()
    site.adapter("other")
    session.enable(["fake"])
    states = "{'fake': 'patched', 'other': 'off'}"
    assert outcome(site, api.carried(score())) == ["('ours', 'x', 1) function", states]


def test_what_counts_is_when_it_is_pickled(site, session):
    site.adapter()
    session.enable()
    carried = api.carried(score())
    with session.suspended():
        suspended = outcome(site, carried)
    session.disable()
    assert suspended == outcome(site, carried) == ["('library', 'x', 1) function", "{'fake': 'off'}"]


def test_the_childs_environment_wins(site, session):
    site.adapter()
    session.enable()
    assert outcome(site, api.carried(score()), LI_PLUGINS="0")[0] == "('library', 'x', 1) function"


def test_a_child_that_does_not_find_the_plugin_gets_the_function(site, session):
    site.adapter()
    session.enable()
    carried = pickle.dumps(api.carried(score()))
    (site.path / "fake_plugin-1.0.dist-info" / "entry_points.txt").unlink()
    done = site.python(CHILD, carried.hex())
    assert done.stdout.splitlines() == ["('library', 'x', 1) function", "{}"]
    assert "nothing is enabled in this process: no adapter is called 'fake'" in done.stderr


def test_a_child_reports_what_is_refused_and_works(site, session):
    site.adapter()
    session.enable()
    carried = pickle.dumps(api.carried(score()))
    scores = site.path / "fakelib" / "scores.py"
    # another length: a compiled file is known by its source's size and second
    scores.write_text(scores.read_text().replace('("library", x, y)', '("an other", x, y)'))
    done = site.python(CHILD, carried.hex(), LI_PLUGINS_STRICT="1")
    assert done.stdout.splitlines()[0] == "('an other', 'x', 1) function"
    assert "fakelib.scores:score" in done.stderr


def test_nothing_is_carried_without_a_session(site, monkeypatch):
    monkeypatch.setattr(api, "carriers", [])
    assert api.carried(len) is len


def test_a_closed_session_carries_nothing(site, session):
    site.adapter()
    session.enable()
    assert api.carriers
    session.close()
    assert not api.carriers
