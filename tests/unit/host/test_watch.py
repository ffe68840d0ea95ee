"""A watched module calls back when it is ready, whatever the order of things, and never suffers from it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import multiprocessing
import sys
import threading
import time
from importlib.machinery import ModuleSpec, SourceFileLoader

import pytest

from li_plugins.host.watch import Watcher

WAIT_S = 20


@pytest.fixture
def watcher():
    watcher = Watcher()
    yield watcher
    watcher.close()
    assert watcher not in sys.meta_path


@pytest.fixture
def heard():
    """Modules that were told, in order."""
    return []


@pytest.fixture
def door(monkeypatch):
    """A place where modules under test find what to call while they are imported."""
    door = type(sys)("watch_door")
    monkeypatch.setitem(sys.modules, "watch_door", door)
    return door


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


def test_the_module_keeps_its_own_loader(site, watcher, heard):
    site.module("target", "loader_seen_inside = (__loader__, __spec__.loader)")
    watcher.when_ready("target", heard.append)
    import target

    assert type(target.__loader__) is SourceFileLoader
    assert target.__spec__.loader is target.__loader__
    assert target.loader_seen_inside == (target.__loader__, target.__loader__)
    assert type(target.__spec__) is ModuleSpec


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


def test_looking_for_a_module_is_not_importing_it(site, watcher, heard):
    file = site.module("target", "x = 1")
    watcher.when_ready("target", heard.append)
    spec = importlib.util.find_spec("target")
    assert spec.origin == str(file)
    assert spec.loader.get_source("target") == "x = 1"
    assert spec.loader.is_package("target") is False
    assert spec.loader.get_filename("target") == str(file)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = spec.loader.no_such_thing
    assert "target" not in sys.modules
    assert heard == []


def test_a_spec_that_is_executed_by_hand_calls_back(site, watcher, heard):
    site.module("target", "x = 1")
    watcher.when_ready("target", heard.append)
    spec = importlib.util.find_spec("target")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert heard == [module]


def test_modules_written_in_c_and_frozen_ones(site):
    """In a fresh process, where nothing has imported them."""
    code = """
    import sys
    from li_plugins.host.watch import Watcher
    watcher, heard = Watcher(), []
    for name in ("_zoneinfo", "_lsprof", "__hello__"):
        sys.modules.pop(name, None)
        watcher.when_ready(name, heard.append)
        __import__(name)
    print([module.__name__ for module in heard])
    """
    done = site.python(code)
    assert done.stdout.splitlines()[-1:] == ["['_zoneinfo', '_lsprof', '__hello__']"], done.stderr


def test_a_namespace_package(site, watcher, heard):
    (site.path / "space").mkdir()
    importlib.invalidate_caches()
    watcher.when_ready("space", heard.append)
    import space

    import_something_else(site)
    assert heard == [space]


@pytest.mark.filterwarnings("ignore:.*exec_module:ImportWarning")
def test_a_loader_from_before_exec_module(watcher, heard, monkeypatch):
    class Loader:
        def load_module(self, name):
            module = sys.modules.setdefault(name, type(sys)(name))
            module.__spec__ = None
            return module

    class Finder:
        def find_spec(self, name, path, target=None):
            return ModuleSpec(name, Loader()) if name == "ancient" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    monkeypatch.delitem(sys.modules, "ancient", raising=False)
    watcher.when_ready("ancient", heard.append)
    try:
        ancient = importlib.import_module("ancient")
    except (ImportError, AttributeError):
        pytest.skip("this Python has no load_module any more")
    with pytest.raises(ModuleNotFoundError):
        import no_such_module  # noqa: F401
    monkeypatch.delitem(sys.modules, "ancient")
    assert heard == [ancient]


def import_something_else(site):
    site.module("something_else", "")
    importlib.invalidate_caches()
    import something_else  # noqa: F401


def test_an_import_of_another_thread_that_was_underway_calls_back_at_the_next_import(site, watcher, heard):
    """It passed the finders before ours was there, and is not in ``sys.modules`` yet."""
    site.module("target", "x = 1")
    found, go_on = threading.Event(), threading.Event()

    class SlowLoader(SourceFileLoader):
        def create_module(self, spec):
            found.set()
            go_on.wait(WAIT_S)

    class Finder:
        def find_spec(self, name, path, target=None):
            if name == "target":
                return importlib.util.spec_from_loader(name, SlowLoader(name, str(site.path / "target.py")))
            return None

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        thread = threading.Thread(target=importlib.import_module, args=("target",))
        thread.start()
        assert found.wait(WAIT_S)
        watcher.when_ready("target", heard.append)
        import_something_else(site)
        assert heard == []
        go_on.set()
        thread.join(WAIT_S)
    finally:
        sys.meta_path.remove(finder)
    with pytest.raises(ModuleNotFoundError):
        import no_such_module  # noqa: F401
    assert heard == [sys.modules["target"]]
    assert watcher._doubtful == ()


def test_a_spec_that_cannot_change_its_class_calls_back_at_the_next_import(site, watcher, heard, monkeypatch):
    class ForeignSpec:
        __slots__ = ("_initializing", "loader", "name")

    module = type(sys)("target")
    module.__spec__ = ForeignSpec()
    module.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "target", module)
    watcher.when_ready("target", heard.append)
    import_something_else(site)
    assert heard == []
    module.__spec__._initializing = False
    with pytest.raises(ModuleNotFoundError):
        import no_such_module  # noqa: F401
    assert heard == [module]


def test_an_import_that_ends_at_this_very_moment_calls_back_at_once(watcher, heard, monkeypatch):
    """After we saw that it lasts, before its spec can tell."""

    class EndingSpec(ModuleSpec):
        def __setattr__(self, name, value):
            if name == "__class__":
                vars(self)["_initializing"] = False
            super().__setattr__(name, value)

    module = type(sys)("target")
    module.__spec__ = EndingSpec("target", None)
    module.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "target", module)
    watcher.when_ready("target", heard.append)
    assert heard == [module]
    assert type(module.__spec__) is EndingSpec


def test_two_watchers_both_hear(site, watcher, heard):
    site.module("target", "")
    other = Watcher()
    try:
        for each in (watcher, other, watcher):
            each.when_ready("target", heard.append)
        import target
    finally:
        other.close()
    assert heard == [target] * 3
    assert type(target.__spec__.loader) is SourceFileLoader


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_finder_that_asks_all_others_as_we_do(site, watcher, heard, place):
    site.module("target", "")

    class AsksAll:
        def find_spec(self, name, path, target=None):
            if name != "target":
                return None
            specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
            return next((spec for spec in specs if spec is not None), None)

    rude = AsksAll()
    watcher.when_ready("target", heard.append)
    sys.meta_path.insert(0 if place == "before" else 1, rude)
    try:
        import target
    finally:
        sys.meta_path.remove(rude)
    assert heard == [target]


def test_callbacks_run_outside_the_lock(site, watcher, heard):
    """Another thread can watch while a callback waits for it."""
    site.module("target", "")
    site.module("replacement", "")

    def callback(module):
        thread = threading.Thread(target=watcher.when_ready, args=("unheard", heard.append))
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        import replacement  # noqa: F401

        watcher.when_ready("target", heard.append)()
        heard.append(module)

    watcher.when_ready("target", callback)
    import target

    assert heard[-1] is target


def test_no_thread_gets_the_module_before_the_callback_is_done(site, watcher):
    site.module("target", "value = 'library'")

    def patch(module):
        time.sleep(0.05)
        module.value = "ours"

    watcher.when_ready("target", patch)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(importlib.import_module("target").value)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert seen == ["ours"] * 6


def test_watches_that_race_with_the_import_are_all_called_once(site, watcher, door):
    """Threads begin to watch at any moment of an import."""
    door.pause = lambda: time.sleep(0.002)
    for round_number in range(20):
        name = f"target{round_number}"
        site.module(name, "import watch_door\nwatch_door.pause()\nlast = 2")
        importlib.invalidate_caches()
        seen = []
        start = threading.Barrier(4)

        def watch(name=name, seen=seen, start=start):
            start.wait(WAIT_S)
            for _ in range(5):
                watcher.when_ready(name, lambda module: seen.append(module.last))

        def load(name=name, start=start):
            start.wait(WAIT_S)
            importlib.import_module(name)

        threads = [threading.Thread(target=job) for job in (watch, watch, watch, load)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        with pytest.raises(ModuleNotFoundError):
            import no_such_module  # noqa: F401
        assert seen == [2] * 15


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_hears_its_own_imports(site, watcher, heard):
    site.module("target", "")
    watcher.when_ready("target", heard.append)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        importlib.import_module("target")
        sender.send([module.__name__ for module in heard])

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(WAIT_S)
    assert receiver.recv() == ["target"]
    process.join(WAIT_S)
    assert heard == []


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
