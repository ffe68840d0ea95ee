"""A suspension gives the originals for a while, and then all is patched again."""

from __future__ import annotations

import pytest
from sessions import scores, states

from li_plugins.errors import RestoreRefused
from li_plugins.host.explain import explain


def test_suspended_really_unpatches_and_patches_again(site, session):
    site.adapter()
    function = scores().score
    code = function.__code__
    session.enable()
    with session.suspended():
        assert function.__code__ is code
        assert function(1) == ("library", 1, 1)
        assert states(session)["score"] == "armed"
        assert "suspended" in session.status().notes[0]
        assert "suspended" in explain(session, function, (1,), {}).reason
    assert function(1) == ("ours", 1, 1)
    assert session.status().notes == ()


def test_suspended_is_a_decorator_and_survives_exceptions(site, session):
    site.adapter()
    session.enable()
    function = scores().score

    @session.suspended()
    def fails():
        raise LookupError(function(1)[0])

    for _ in range(2):
        with pytest.raises(LookupError, match="library"):
            fails()
        assert function(1) == ("ours", 1, 1)


def test_suspensions_nest(site, session):
    site.adapter()
    session.enable()
    function = scores().score
    with session.suspended():
        with session.suspended():
            pass
        assert function(1) == ("library", 1, 1)
    assert function(1) == ("ours", 1, 1)


def test_imported_or_enabled_while_suspended_is_patched_at_the_end(site, session):
    site.adapter("one")
    site.adapter("two")
    session.enable(["one"])
    with session.suspended():
        session.enable(["two"])
        assert scores("onelib").score(1) == scores("twolib").score(1) == ("library", 1, 1)
    assert scores("onelib").score(1) == scores("twolib").score(1) == ("ours", 1, 1)


def test_disabled_while_suspended_stays_off(site, session):
    site.adapter()
    session.enable()
    with session.suspended():
        session.disable()
    assert scores().score(1) == ("library", 1, 1)


def test_suspending_what_was_never_enabled_changes_nothing(site, session):
    site.adapter()
    with session.suspended():
        scores()
    assert scores().score(1) == ("library", 1, 1)


def test_a_suspension_that_cannot_give_the_originals_raises_and_leaves_all_patched(site, session):
    site.adapter()
    module = scores()
    session.enable()
    ours = module.score.__code__
    module.score.__code__ = (lambda x, y=1: ("somebody", x, y)).__code__
    with pytest.raises(RestoreRefused), session.suspended():
        pytest.fail("the block ran")
    module.score.__code__ = ours
    assert module.Scorer()(1) == ("ours", 1)
    assert module.score(1) == ("ours", 1, 1)
