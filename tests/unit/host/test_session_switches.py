"""What a session takes on: adapters by name, releases in range, and what the environment says."""

from __future__ import annotations

import logging
import os

import pytest
from sessions import messages, rows, scores, states

from li_plugins.errors import BadInput, PatchRefused, UnknownAdapter


def test_an_unknown_name_names_the_nearest_and_changes_nothing(site, session):
    site.adapter()
    scores()
    with pytest.raises(UnknownAdapter, match="did you mean 'fake'") as caught:
        session.enable(["fake", "fakke"])
    assert caught.value.nearest == "fake"
    assert states(session)["score"] == "off"


def test_an_absent_library_is_quiet_unless_it_is_asked_for_by_name(site, session, caplog):
    site.adapter("gone", requires="gonelib-of-nobody>=1")
    session.enable(strict=True)
    assert messages(caplog) == []
    row = rows(session.status(), "gone")[""]
    assert (row.state, row.reason) == ("absent", "gonelib-of-nobody is not installed")
    session.enable(["gone"])
    assert "adapter 'gone' is absent: gonelib-of-nobody is not installed" in messages(caplog)[0]
    with pytest.raises(PatchRefused, match="gonelib-of-nobody is not installed"):
        session.enable(["gone"], strict=True)


def test_an_untested_release_is_out_of_range_until_the_user_says_otherwise(site, session, caplog, monkeypatch):
    site.adapter(version="2.3")
    scores()
    session.enable()
    row = rows(session.status())[""]
    assert row.state == "out-of-range"
    assert "fakelib 2.3 is installed" in row.reason
    assert "LI_PLUGINS_UNTESTED=1" in row.reason
    assert len(messages(caplog)) == 1
    assert scores().score(1) == ("library", 1, 1)
    with pytest.raises(PatchRefused, match=r"2\.3"):
        session.enable(strict=True)
    monkeypatch.setenv("LI_PLUGINS_UNTESTED", "1")
    session.enable()
    assert scores().score(1) == ("ours", 1, 1)
    assert "untested release 2.3" in rows(session.status())["score"].reason


def test_a_target_of_other_releases_is_left_out(site, session):
    target = 'Target("fakelib.scores:{}", "fake_replacements:{}", bodies={}, versions="{}")'
    site.adapter(
        targets=", ".join(
            [
                target.format("score", "score", {"1.5": "7ba63937"}, ">=1.5"),
                target.format("Scorer.__call__", "call", {"1.5": "4672e0c6"}, "<1.5"),
            ]
        )
    )
    scores()
    assert {row.target for row in session.enable().rows if row.adapter == "fake"} == {"fakelib.scores:score"}
    assert scores().Scorer()(1) == ("library", 1)


def test_zero_in_the_environment_beats_code_and_status_says_so(site, session, monkeypatch, caplog):
    site.adapter()
    scores()
    monkeypatch.setenv("LI_PLUGINS", "0")
    caplog.set_level(logging.INFO, "li_plugins")
    status = session.enable()
    assert scores().score(1) == ("library", 1, 1)
    assert states(session)["score"] == "off"
    assert "LI_PLUGINS=0" in status.notes[0]
    assert "LI_PLUGINS=0" in messages(caplog, logging.INFO)[0]
    monkeypatch.delenv("LI_PLUGINS")
    assert session.enable().notes == ()
    assert scores().score(1) == ("ours", 1, 1)


@pytest.mark.parametrize(("value", "on"), [("1", {"one", "two"}), ("two", {"two"}), ("0", set()), ("", set())])
def test_the_environment_names_what_to_enable(site, session, monkeypatch, value, on):
    site.adapter("one")
    site.adapter("two")
    monkeypatch.setenv("LI_PLUGINS", value)
    session.enable_from_environment()
    assert {name for name in ("one", "two") if states(session, name)["score"] == "armed"} == on


def test_an_unknown_name_in_the_environment_does_not_stop_the_others(site, session, monkeypatch, caplog):
    site.adapter()
    monkeypatch.setenv("LI_PLUGINS", "fakke,fake")
    session.enable_from_environment()
    assert states(session)["score"] == "armed"
    assert "did you mean 'fake'?" in session.status().notes[0]
    assert len(messages(caplog)) == 1
    monkeypatch.setenv("LI_PLUGINS_STRICT", "1")
    with pytest.raises(UnknownAdapter):
        session.enable_from_environment()


def test_propagate_sets_the_variable_for_children_and_disable_takes_it_back(site, session, monkeypatch):
    site.adapter("one")
    site.adapter("two")
    session.enable(["one"])
    assert "LI_PLUGINS" not in os.environ
    session.enable(["one"], propagate=True)
    assert os.environ["LI_PLUGINS"] == "one"
    session.enable(["two"], propagate=True)
    assert os.environ["LI_PLUGINS"] == "one,two"
    session.enable(propagate=True)
    assert os.environ["LI_PLUGINS"] == "1"
    session.enable(["one"], propagate=True)
    assert os.environ["LI_PLUGINS"] == "1"
    session.disable()
    assert "LI_PLUGINS" not in os.environ
    session.enable(propagate=True)
    os.environ["LI_PLUGINS"] = "mine"
    session.disable()
    assert os.environ["LI_PLUGINS"] == "mine"


def test_an_opt_in_adapter_is_for_those_who_name_it(site, session):
    site.adapter("fake")
    site.adapter("mend", fields=", opt_in=True")
    scores("fakelib"), scores("mendlib")
    session.enable()
    assert states(session)["score"] == "patched"
    assert states(session, "mend")["score"] == "off"
    assert rows(session.status(), "mend")["score"].reason == "not enabled: only by name"
    session.enable(["mend"])
    assert states(session, "mend")["score"] == "patched"
    session.disable()
    assert states(session, "mend")["score"] == "off"


@pytest.mark.parametrize(
    ("value", "fake", "mend"),
    [
        ("1", "patched", "off"),
        ("fake", "patched", "off"),
        ("mend", "off", "patched"),
        ("1,mend", "patched", "patched"),
        ("mend,all", "patched", "patched"),
    ],
)
def test_the_environment_may_name_an_opt_in_adapter_beside_all_others(site, session, monkeypatch, value, fake, mend):
    site.adapter("fake")
    site.adapter("mend", fields=", opt_in=True")
    scores("fakelib"), scores("mendlib")
    monkeypatch.setenv("LI_PLUGINS", value)
    session.enable_from_environment()
    assert (states(session)["score"], states(session, "mend")["score"]) == (fake, mend)


def test_propagate_names_an_opt_in_adapter_beside_all_others(site, session, monkeypatch):
    monkeypatch.delenv("LI_PLUGINS", raising=False)
    site.adapter("fake")
    site.adapter("mend", fields=", opt_in=True")
    session.enable(["fake", "mend"], propagate=True)
    assert os.environ["LI_PLUGINS"] == "fake,mend"
    session.enable(propagate=True)
    assert os.environ["LI_PLUGINS"] == "1,mend"
    session.enable(["fake"], propagate=True)
    assert os.environ["LI_PLUGINS"] == "1,mend"
    session.disable()
    assert "LI_PLUGINS" not in os.environ
    session.enable(propagate=True)
    assert os.environ["LI_PLUGINS"] == "1"
    session.enable(["mend"], propagate=True)
    assert os.environ["LI_PLUGINS"] == "1,mend"


def test_a_bad_variable_is_reported_and_strict_raises_it(site, session, monkeypatch, caplog):
    monkeypatch.setenv("LI_PLUGINS_UNTESTED", "perhaps")
    session.enable()
    session.enable()
    assert len(messages(caplog)) == 1
    assert any("LI_PLUGINS_UNTESTED takes 1 or 0" in note for note in session.status().notes)
    with pytest.raises(BadInput, match="'perhaps'"):
        session.enable(strict=True)
