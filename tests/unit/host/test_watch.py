"""A watched module calls back when it is ready, whatever the order of things, and never suffers from it."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from importlib.machinery import ModuleSpec, SourceFileLoader

import pytest


def test_a_ready_module_calls_back_at_once(site, watcher, heard):
    site.module("target", "done = True")
    import target

    watcher.when_ready("target", heard.append)
    assert heard == [target]


def test_a_later_import_calls_back_when_the_module_is_complete(site, watcher):
    site.module("pack.target", "first = 1\nlast = 2")
    seen = []
    watcher.when_ready("pack.target", lambda module: seen.append((module, module.last)))
    assert "pack" not in sys.modules, "watching imports nothing"
    from pack import target

    assert seen == [(target, 2)]


def test_other_modules_do_not_call_back(site, watcher, heard):
    site.module("target", "")
    site.module("neighbour", "")
    watcher.when_ready("target", heard.append)
    import neighbour  # noqa: F401

    assert heard == []


def test_every_watch_is_called_in_order(site, watcher):
    site.module("target", "")
    calls = []
    for name in "abc":
        watcher.when_ready("target", lambda module, name=name: calls.append(name))
    import target  # noqa: F401

    assert calls == ["a", "b", "c"]


def test_a_reload_calls_back_again(site, watcher, heard):
    site.module("target", "")
    import target

    watcher.when_ready("target", heard.append)
    importlib.reload(target)
    importlib.reload(target)
    assert heard == [target, target, target]
    assert type(target.__spec__.loader) is SourceFileLoader


def test_a_half_imported_module_calls_back_at_the_end(site, watcher, door):
    """The finder is not there yet when the import begins."""
    site.module("target", "import watch_door\nwatch_door.arm()\nlast = 2")
    seen = []
    door.arm = lambda: [watcher.when_ready("target", lambda m, n=n: seen.append((n, m.last))) for n in (1, 2)]
    import target

    assert seen == [(1, 2), (2, 2)]
    assert type(target.__spec__) is ModuleSpec
    assert not any("li_plugins" in name for name in vars(target.__spec__))


def test_a_watched_module_that_watches_itself_calls_each_watch_once(site, watcher, door, heard):
    site.module("target", "import watch_door\nwatch_door.arm()")
    watcher.when_ready("target", heard.append)
    door.arm = lambda: watcher.when_ready("target", heard.append)
    import target

    assert heard == [target, target]


def test_a_package_calls_back_after_its_submodules(site, watcher, door):
    site.module("pack.part", "import watch_door\nwatch_door.arm()")
    (site.path / "pack" / "__init__.py").write_text("from pack import part\nlast = 2")
    order = []

    def arm():
        watcher.when_ready("pack", lambda module: order.append(("pack", module.last)))
        watcher.when_ready("pack.part", lambda module: order.append(("part", hasattr(sys.modules["pack"], "last"))))

    door.arm = arm
    import pack  # noqa: F401

    assert order == [("part", False), ("pack", 2)]


@pytest.mark.parametrize("armed", ["before", "during"])
def test_a_failed_import_does_not_call_back_but_the_next_does(site, watcher, door, heard, armed):
    file = site.module("target", "import watch_door\nwatch_door.arm()\nraise RuntimeError('half way')")
    door.arm = lambda: watcher.when_ready("target", heard.append) if armed == "during" else None
    if armed == "before":
        watcher.when_ready("target", heard.append)
    with pytest.raises(RuntimeError, match="half way"):
        import target
    assert heard == []
    file.write_text("last = 'a longer text, so that the size tells that the file changed'")
    importlib.invalidate_caches()
    import target

    assert heard == [target]


def test_a_missing_module_is_missing_as_ever(watcher, heard):
    watcher.when_ready("no_such_module", heard.append)
    with pytest.raises(ModuleNotFoundError) as error:
        import no_such_module  # noqa: F401
    assert error.value.name == "no_such_module"
    assert heard == []


def test_a_blocked_module_does_not_call_back(watcher, heard, monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked", None)
    watcher.when_ready("blocked", heard.append)
    with pytest.raises(ImportError):
        import blocked  # noqa: F401
    assert heard == []


def test_the_callback_gets_what_a_module_puts_in_its_place(site, watcher, heard, monkeypatch):
    site.module("fickle", "import sys, types\nsys.modules[__name__] = types.SimpleNamespace(real=True)")
    watcher.when_ready("fickle", heard.append)
    import fickle

    monkeypatch.delitem(sys.modules, "fickle")
    assert heard == [fickle]
    assert fickle.real


def test_the_undo_stops_the_calls(site, watcher, heard):
    site.module("target", "")
    undo = watcher.when_ready("target", heard.append)
    undo()
    undo()
    import target

    importlib.reload(target)
    assert heard == []


def test_the_undo_stops_a_call_that_waits_for_the_end_of_an_import(site, watcher, door, heard):
    site.module("target", "import watch_door\nwatch_door.arm()")
    door.arm = lambda: watcher.when_ready("target", heard.append)()
    import target

    assert heard == []
    assert type(target.__spec__) is ModuleSpec


def test_the_finder_leaves_with_the_last_watch_and_comes_back(watcher, heard):
    before = list(sys.meta_path)
    undo_one, undo_other = watcher.when_ready("one", heard.append), watcher.when_ready("other", heard.append)
    assert sys.meta_path == [watcher, *before]
    undo_one()
    assert watcher in sys.meta_path
    undo_other()
    assert sys.meta_path == before
    watcher.when_ready("one", heard.append)
    assert sys.meta_path == [watcher, *before]
    watcher.close()
    assert sys.meta_path == before


def test_a_finder_that_was_taken_away_comes_back_with_the_next_watch(site, watcher, heard):
    site.module("target", "")
    watcher.when_ready("target", heard.append)
    sys.meta_path.remove(watcher)
    watcher.when_ready("another", heard.append)
    import target

    assert heard == [target]


@pytest.mark.parametrize("error", [RuntimeError("broken callback"), SystemExit(3)])
@pytest.mark.parametrize("armed", ["before", "during", "after"])
def test_an_exception_of_a_callback_is_logged_and_harms_nobody(site, watcher, door, heard, caplog, error, armed):
    def broken(module):
        raise error

    def arm(now):
        if now == armed:
            watcher.when_ready("target", broken)
            watcher.when_ready("target", heard.append)

    site.module("target", "import watch_door\nwatch_door.arm('during')")
    door.arm = arm
    with caplog.at_level(logging.ERROR, "li_plugins"):
        arm("before")
        import target

        arm("after")
    assert heard == [target]
    assert "target" in caplog.text
    assert repr(error)[:-1].rstrip(",)").split("(")[0] in caplog.text


def test_an_interrupt_is_not_contained(site, watcher):
    site.module("target", "")

    def interrupted(module):
        raise KeyboardInterrupt

    watcher.when_ready("target", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import target  # noqa: F401


def test_unrelated_imports_cost_next_to_nothing(watcher, heard):
    """About 0.2 us were measured; the bound leaves room for busy machines."""
    for number in range(50):
        watcher.when_ready(f"absent{number}", heard.append)
    calls, best = 2000, float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(calls):
            watcher.find_spec("unrelated")
        best = min(best, (time.perf_counter() - begin) / calls)
    assert best < 5e-6
