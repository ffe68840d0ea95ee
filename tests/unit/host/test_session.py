"""Enable, disable, suspend, report: the one session, on fake libraries and plugins."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import pickle
import sys
import threading
from contextlib import suppress

import pytest

from li_plugins.errors import BadInput, PatchRefused, PluginBroken, RestoreRefused, UnknownAdapter
from li_plugins.host.explain import explain
from li_plugins.host.report import Row, Status
from li_plugins.host.session import Session


@pytest.fixture
def session(site):
    """Return a session of its own; whatever it patched is given back."""
    found = Session()
    yield found
    with suppress(RestoreRefused):
        found.close()


def rows(status: Status, adapter: str = "fake") -> dict[str, Row]:
    return {row.target.rpartition(".scores:")[2]: row for row in status.rows if row.adapter == adapter}


def states(session: Session, adapter: str = "fake") -> dict[str, str]:
    return {name: row.state for name, row in rows(session.status(), adapter).items()}


def scores(name: str = "fakelib"):
    return importlib.import_module(f"{name}.scores")


def messages(caplog, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# Orders of import, enable and disable.


def test_patches_what_is_imported_and_what_comes_later(site, session):
    site.adapter("early")
    site.adapter("late")
    held = scores("earlylib").score
    session.enable()
    assert held(1) == ("ours", 1, 1)
    assert states(session, "early") == {"score": "patched", "Scorer.__call__": "patched"}
    assert states(session, "late") == {"score": "armed", "Scorer.__call__": "armed"}
    assert "latelib" not in sys.modules
    assert "late_replacements" not in sys.modules
    assert rows(session.status(), "late")["score"].reason == "its module is not imported yet"
    assert scores("latelib").score(1) == ("ours", 1, 1)
    assert states(session, "late")["score"] == "patched"


def test_patches_at_the_end_of_an_import_under_way(site, session):
    site.adapter()
    file = site.path / "fakelib" / "scores.py"
    file.write_text("import trigger\n" + file.read_text())
    site.module("trigger", "import builtins\nbuiltins.trigger()")
    import builtins

    builtins.trigger = lambda: session.enable(["fake"])
    try:
        assert scores().score(1) == ("ours", 1, 1)
    finally:
        del builtins.trigger


def test_gives_back_the_very_same_functions(site, session):
    site.adapter()
    function, method = scores().score, scores().Scorer.__call__
    codes = function.__code__, method.__code__
    session.enable()
    assert scores().Scorer()(2) == ("ours", 2)
    session.disable()
    assert (scores().score, scores().Scorer.__call__) == (function, method)
    assert (function.__code__, method.__code__) == codes
    assert function(1) == ("library", 1, 1)
    assert states(session) == {"score": "off", "Scorer.__call__": "off"}


def test_what_is_imported_after_disable_stays_as_it_is(site, session):
    site.adapter()
    session.enable()
    session.disable()
    assert scores().score(1) == ("library", 1, 1)


def test_enabling_twice_is_one_patch_and_counts_go_on(site, session):
    site.adapter()
    function = scores().score
    code = function.__code__
    session.enable()
    patched = function.__code__
    function(1)
    session.enable()
    assert function.__code__ is patched
    function(1)
    assert rows(session.status())["score"].calls == 2
    session.disable()
    assert function.__code__ is code
    session.enable()
    function(1)
    assert rows(session.status())["score"].calls == 3


def test_a_reloaded_module_is_patched_again_and_all_is_given_back(site, session):
    site.adapter()
    module = scores()
    old = module.score
    session.enable()
    importlib.reload(module)
    assert module.score is not old
    assert module.score(1) == old(1) == ("ours", 1, 1)
    assert rows(session.status())["score"].calls == 2
    session.disable()
    assert module.score(1) == old(1) == ("library", 1, 1)


def test_enabling_one_adapter_leaves_the_others(site, session):
    site.adapter("one")
    site.adapter("two")
    scores("onelib"), scores("twolib")
    session.enable(["one"])
    assert states(session, "one")["score"] == "patched"
    assert states(session, "two")["score"] == "off"
    session.enable(["two"])
    session.disable(["one"])
    assert scores("onelib").score(1) == ("library", 1, 1)
    assert scores("twolib").score(1) == ("ours", 1, 1)


def test_the_import_hook_is_gone_after_disable(site, session):
    site.adapter()
    before = list(sys.meta_path)
    session.enable()
    session.enable()
    session.disable()
    assert sys.meta_path == before


def test_a_disable_in_the_midst_of_an_enable_wins(site, session):
    site.adapter()
    file = site.path / "fake_replacements.py"
    file.write_text("import sys\nsys.in_the_midst()\n" + file.read_text())
    module = scores()
    before = list(sys.meta_path)
    sys.in_the_midst = session.disable
    try:
        session.enable(["fake"])
    finally:
        del sys.in_the_midst
    assert module.score(1) == ("library", 1, 1)
    assert sys.meta_path == before


def test_patched_objects_pickle_and_copy(site, session):
    site.adapter()
    session.enable()
    function = scores().score
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function
    assert copy.deepcopy(scores().Scorer())(3) == ("ours", 3)


# Names, releases, switches.


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


# Suspension.


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


# Threads, and a plugin that imports torch.


def test_threads_enable_and_disable_at_will(site, session):
    site.adapter()
    module = scores()
    code = module.score.__code__
    errors = []

    def flip():
        try:
            for _ in range(60):
                session.enable(["fake"])
                assert module.score(1)[0] in ("ours", "library")
                with session.suspended():
                    pass
                session.disable()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=flip) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    session.disable()
    assert module.score.__code__ is code
    session.enable()
    assert module.score(1) == ("ours", 1, 1)


def test_threads_that_enable_together_find_everything_patched(site):
    site.adapter()
    scores()
    session = Session()
    barrier = threading.Barrier(4)
    found = []

    def enable():
        barrier.wait()
        session.enable(["fake"])
        found.append(scores().score(1))

    threads = [threading.Thread(target=enable) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [("ours", 1, 1)] * 4
    session.close()
    assert scores().score(1) == ("library", 1, 1)


def test_a_request_that_comes_while_plugins_load_is_served_afterwards(site, session):
    """A plugin's module may import torch, whose end calls the environment gate while we load that plugin."""
    site.adapter()
    site.plugin("nested", "import sys\nsys.nested_request()")
    sys.nested_request = lambda: session.enable(["fake"])
    try:
        scores()
        session.status()
        assert scores().score(1) == ("ours", 1, 1)
    finally:
        del sys.nested_request


# Explanations.


def test_explains_what_a_call_would_run(site, session):
    site.adapter()
    session.enable()
    function = scores().score
    found = explain(session, function, (1,), {})
    assert found.accelerated
    assert "kernel fast for 1" in str(found)
    assert "rejected slow" in str(found)
    found = explain(session, function, ("decline",), {})
    assert not found.accelerated
    assert "declines, the original runs: x is 'decline'" in str(found)
    assert rows(session.status())["score"].calls == 0


def test_explains_methods_instances_and_partials(site, session):
    from functools import partial

    site.adapter()
    session.enable()
    module = scores()
    instance = module.Scorer()
    for callable_ in (instance, instance.__call__, module.Scorer.__call__):
        found = explain(session, callable_, (), {})
        assert (found.state, found.function) == ("patched", "fakelib.scores.Scorer.__call__")
    assert "x is 'decline'" in str(explain(session, partial(module.score, "decline"), (), {"y": 2}))


@pytest.mark.parametrize(
    ("state", "says"),
    [("off", "not enabled"), ("switched off", "LI_PLUGINS=0"), ("refused", "known"), ("absent", "not installed")],
)
def test_explains_why_a_function_is_not_patched(site, session, monkeypatch, state, says):
    site.adapter(requires="lib-of-nobody>=1" if state == "absent" else "")
    if state == "refused":
        file = site.path / "fakelib" / "scores.py"
        file.write_text(file.read_text().replace('("library", x, y)', '("changed", x, y)'))
        session.enable()
    if state == "switched off":
        monkeypatch.setenv("LI_PLUGINS", "0")
    found = explain(session, scores().score, (1,), {})
    assert not found.accelerated
    assert says in found.reason
    assert found.adapter == "fake"


def test_explains_that_nobody_names_a_function(session):
    import json
    import math

    assert explain(session, json.dumps, ({},), {}).reason == "no adapter names this function"
    assert "not a target" in str(explain(session, math.sqrt, (2,), {}))


def test_explains_decorated_reloaded_and_version_bound_functions(site, session):
    decorated = (
        "import functools\ndef wrap(f):\n    @functools.wraps(f)\n    def g(*a): return f(*a)\n    return g\n@wrap\n"
    )
    target = 'Target("fakelib.scores:{0}", "fake_replacements:{0}", versions="{1}")'
    site.adapter(
        library=decorated + "def score(x, y=1): return x\ndef other(x): return x",
        targets=f"{target.format('score', '')}, {target.format('other', '<1.5')}",
    )
    module = scores()
    session.enable()
    assert explain(session, module.score, (), {}).state == "patched"
    assert explain(session, module.other, (), {}).reason == "no target in fake 1.5"
    old = module.score
    session.disable()
    importlib.reload(module)
    session.enable()
    assert "another function of this name is patched" in explain(session, old, (), {}).reason
