"""The environment gate: silent when unset, contained when broken, inherited by children."""

from __future__ import annotations

import json

import pytest

from li_plugins import _autoload


def test_unset_or_zero_returns_at_once_and_loads_nothing(site):
    code = """
    import sys
    from li_plugins import _autoload
    before = set(sys.modules)
    _autoload.main()
    print(sorted(set(sys.modules) - before))
    """
    for environment in ({}, {"LI_PLUGINS": ""}, {"LI_PLUGINS": "0"}, {"LI_PLUGINS": " "}):
        done = site.python(code, **environment)
        assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_unset_costs_microseconds(monkeypatch):
    import timeit

    monkeypatch.delenv("LI_PLUGINS", raising=False)
    assert min(timeit.repeat(_autoload.main, number=1000, repeat=5)) / 1000 < 20e-6


def test_any_failure_becomes_one_line(site):
    site.adapter()
    broken = """
    import sys
    from li_plugins import _autoload
    import li_plugins.host.session as session
    class Failure(BaseException): pass
    def fail(): raise {what}
    session.SESSION.enable_from_environment = fail
    _autoload.main()
    print("on")
    """
    for what in ("Failure('no disk')", "SystemExit('no disk')", "OSError('no disk')"):
        done = site.python(broken.replace("{what}", what), LI_PLUGINS="fake")
        assert done.stdout == "on\n"
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("li_plugins: LI_PLUGINS=fake: ")
        assert "no disk" in done.stderr
    done = site.python(broken.replace("{what}", "KeyboardInterrupt"), LI_PLUGINS="fake")
    assert done.stdout == ""


def test_an_unknown_name_is_one_line_in_strict_mode_too(site):
    site.adapter()
    for environment in ({}, {"LI_PLUGINS_STRICT": "1"}):
        done = site.python("from li_plugins import _autoload; _autoload.main()", LI_PLUGINS="fakke", **environment)
        (line,) = done.stderr.splitlines()
        assert "did you mean 'fake'?" in line


def test_main_is_idempotent_and_a_process_without_stderr_lives(site):
    site.adapter()
    code = """
    import sys
    from li_plugins import _autoload
    _autoload.main(); _autoload.main()
    import fakelib.scores
    print(fakelib.scores.score(1)[0])
    sys.stderr = None
    sys.modules["li_plugins.host.session"] = None
    _autoload.main()
    print("alive")
    """
    assert site.python(code, LI_PLUGINS="fake").stdout.split() == ["ours", "alive"]


# Processes that import torch; each costs seconds, so each tells several things.


def test_torch_calls_the_gate_and_a_broken_plugin_does_not_break_it(site):
    """One library comes before torch, one after; one plugin raises, another imports torch while it is loaded."""
    pytest.importorskip("torch")
    site.adapter("early")
    site.adapter("late")
    site.plugin("broken", "raise SystemExit('no licence')")
    site.plugin("greedy", "import torch\n@hookimpl\ndef li_plugins_adapters(): return []")
    code = """
    import json, sys
    import earlylib.scores
    import torch
    early = earlylib.scores.score(1)[0]
    armed = "latelib" in sys.modules
    import latelib.scores
    import li_plugins
    print(json.dumps([early, armed, latelib.scores.score(1)[0], li_plugins.status().to_dict()["rows"]]))
    """
    done = site.python(code, LI_PLUGINS="1")
    assert done.returncode == 0, done.stderr
    early, imported_for_us, late, rows = json.loads(done.stdout)
    assert (early, imported_for_us, late) == ("ours", False, "ours")
    broken = [row for row in rows if row["state"] == "broken"]
    assert [(row["adapter"], row["reason"]) for row in broken] == [("broken", "SystemExit: no licence")]
    assert done.stderr.count("no licence") == 1


def test_unset_leaves_torch_and_its_imports_alone(site):
    pytest.importorskip("torch")
    site.adapter()
    code = """
    import sys, torch
    print([name for name in ("pluggy", "li_plugins.host.session", "li_plugins.api") if name in sys.modules])
    from fakelib.scores import score
    print(score(1)[0])
    """
    assert site.python(code).stdout.splitlines() == ["[]", "library"]


def test_spawned_workers_inherit_the_variable_not_a_call(site):
    """The children call the gate by hand, as `import torch` would."""
    site.adapter()
    site.module(
        "work",
        """
        def score(x):
            from li_plugins import _autoload
            _autoload.main()  # what `import torch` does
            import fakelib.scores
            return fakelib.scores.score(x)[0]
        """,
    )
    code = """
    import multiprocessing, li_plugins, work
    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        li_plugins.enable_all()
        with context.Pool(1) as pool:
            print(pool.apply(work.score, (1,)))
        li_plugins.enable_all(propagate=True)
        with context.Pool(1) as pool:
            print(pool.apply(work.score, (1,)))
        li_plugins.disable_all()
        with context.Pool(1) as pool:
            print(pool.apply(work.score, (1,)))
    """
    site.module("main", code)
    done = site.run("main.py")
    assert done.stdout.split() == ["library", "ours", "library"], done.stderr
