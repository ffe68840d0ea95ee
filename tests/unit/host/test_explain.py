"""What a call would run and why, before it is made."""

from __future__ import annotations

import importlib

import pytest
from sessions import rows, scores

from li_plugins.host.explain import explain


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
