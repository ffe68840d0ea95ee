"""What fails or declines is contained and named: in the status, in the log once, to plugins, and raised when strict."""

from __future__ import annotations

import logging
import sys

import pytest
from sessions import messages, rows, scores, states

from li_plugins.errors import PatchRefused, PluginBroken, RestoreRefused

# Failures.


def test_a_changed_body_is_refused_with_what_to_do_and_the_original_runs(site, session, caplog):
    site.adapter()
    file = site.path / "fakelib" / "scores.py"
    file.write_text(file.read_text().replace('("library", x, y)', '("library, changed", x, y)'))
    scores()
    session.enable()
    session.enable()
    row = rows(session.status())["score"]
    assert row.state == "refused"
    assert "7ba63937" in row.reason
    assert "LI_PLUGINS_UNTESTED=1" in row.reason
    assert scores().score(1) == ("library, changed", 1, 1)
    assert scores().Scorer()(1) == ("ours", 1)
    assert len(messages(caplog)) == 1
    assert session.status().failures == (row,)


def test_strict_raises_a_refusal_after_everything_else_was_done(site, session):
    site.adapter()
    file = site.path / "fakelib" / "scores.py"
    file.write_text(file.read_text().replace('("library", x, y)', '("library, changed", x, y)'))
    scores()
    with pytest.raises(PatchRefused):
        session.enable(strict=True)
    assert states(session) == {"score": "refused", "Scorer.__call__": "patched"}


def test_strict_raises_a_refusal_at_the_librarys_import(site, session):
    site.adapter()
    file = site.path / "fakelib" / "scores.py"
    file.write_text(file.read_text().replace('("library", x, y)', '("library, changed", x, y)'))
    session.enable(strict=True)
    with pytest.raises(PatchRefused):
        scores()


def test_untested_overrides_the_body(site, session, monkeypatch):
    site.adapter()
    file = site.path / "fakelib" / "scores.py"
    file.write_text(file.read_text().replace('("library", x, y)', '("library, changed", x, y)'))
    monkeypatch.setenv("LI_PLUGINS_UNTESTED", "1")
    scores()
    session.enable()
    assert states(session)["score"] == "patched"


@pytest.mark.parametrize("statement", ["import nothing_of_that_name", "raise SystemExit", "del score"])
def test_a_replacement_that_cannot_be_loaded_is_contained_and_named(site, session, caplog, statement):
    site.adapter("bad")
    site.adapter("good")
    file = site.path / "bad_replacements.py"
    file.write_text(file.read_text() + "\n" + statement)
    session.enable()
    assert scores("badlib").score(1) == ("library", 1, 1)
    assert scores("goodlib").score(1) == ("ours", 1, 1)
    row = rows(session.status(), "bad")["score"]
    assert row.state == "broken"
    assert "plugin 'bad' failed: bad_replacements:score" in row.reason
    assert any("bad_replacements:score" in message for message in messages(caplog))
    with pytest.raises(PluginBroken):
        session.enable(strict=True)


def test_a_broken_plugin_is_named_in_status_and_raised_when_strict(site, session):
    site.plugin("broken", "import nothing_of_that_name")
    site.adapter()
    scores()
    status = session.enable()
    assert rows(status)["score"].state == "patched"
    row = rows(status, "broken")[""]
    assert row.state == "broken"
    assert "nothing_of_that_name" in row.reason
    with pytest.raises(PluginBroken, match="nothing_of_that_name"):
        session.enable(strict=True)


def test_disable_goes_on_past_a_refusal_and_loses_nothing(site, session):
    site.adapter()
    module = scores()
    session.enable()
    ours = module.score.__code__
    module.score.__code__ = (lambda x, y=1: ("somebody", x, y)).__code__
    with pytest.raises(RestoreRefused, match=r"scores"):
        session.disable()
    assert module.Scorer()(1) == ("library", 1)
    row = rows(session.status())["score"]
    assert row.state == "patched"
    assert "after li-plugins" in row.reason
    module.score.__code__ = ours  # somebody undoes theirs
    session.disable()
    assert module.score(1) == ("library", 1, 1)
    assert states(session)["score"] == "off"


def test_a_quarantined_kernel_is_named_when_the_operations_are_there(session, monkeypatch):
    import types

    dispatch = types.SimpleNamespace(quarantined=lambda: {("maxsim", "triton"): "CompilationError: no sm_75"})
    monkeypatch.setitem(sys.modules, "li_plugins.ops.dispatch", dispatch)
    row = next(row for row in session.status().rows if row.state == "quarantined")
    assert row.adapter == "maxsim"
    assert "kernel 'triton' could not be compiled, the next one runs: CompilationError: no sm_75" in row.reason
    assert row in session.status().failures


# Declines and events.


def test_a_decline_runs_the_original_is_counted_and_told_once(site, session, caplog):
    site.adapter()
    site.plugin(
        "ear", "seen = []\n@hookimpl\ndef li_plugins_declined(target, reason): seen.append((target.path, reason))"
    )
    caplog.set_level(logging.INFO, "li_plugins")
    session.enable()
    for _ in range(3):
        assert scores().score("decline") == ("library", "decline", 1)
    scores().score(1)
    row = rows(session.status())["score"]
    assert (row.calls, row.declines) == (4, 3)
    assert "declined 3x: x is 'decline'" in row.reason
    assert session.status().to_dict()["rows"]
    told = [m for m in messages(caplog, logging.INFO) if "decline" in m]
    assert told == ["li_plugins: fakelib.scores.score kept the original: x is 'decline' (once)"]
    assert sys.modules["ear_plugin"].seen == [("fakelib.scores:score", "x is 'decline'")]
    session.disable()
    assert rows(session.status())["score"].declines == 3


def test_plugins_hear_of_patches_and_undos(site, session):
    site.adapter()
    site.plugin(
        "ear",
        """
        seen = []
        @hookimpl
        def li_plugins_patched(record): seen.append(("patched", record.target.qualname))
        @hookimpl
        def li_plugins_restored(record): seen.append(("restored", record.target.qualname))
        """,
    )
    scores()
    session.enable()
    session.enable()
    session.disable()
    assert sys.modules["ear_plugin"].seen == [
        ("patched", "score"), ("patched", "Scorer.__call__"), ("restored", "Scorer.__call__"), ("restored", "score"),
    ]  # fmt: skip
