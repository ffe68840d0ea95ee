"""A watch leaves specs, loaders and finders as it finds them, and calls back whichever of them imports the module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader

import pytest

from li_plugins.host.watch import Watcher


def test_the_module_keeps_its_own_loader(site, watcher, heard):
    site.module("target", "loader_seen_inside = (__loader__, __spec__.loader)")
    watcher.when_ready("target", heard.append)
    import target

    assert type(target.__loader__) is SourceFileLoader
    assert target.__spec__.loader is target.__loader__
    assert target.loader_seen_inside == (target.__loader__, target.__loader__)
    assert type(target.__spec__) is ModuleSpec


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


def test_a_namespace_package(site, watcher, heard, import_something_else):
    (site.path / "space").mkdir()
    importlib.invalidate_caches()
    watcher.when_ready("space", heard.append)
    import space

    import_something_else()
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


def test_a_spec_that_cannot_change_its_class_calls_back_at_the_next_import(
    site, watcher, heard, monkeypatch, import_something_else
):
    class ForeignSpec:
        __slots__ = ("_initializing", "loader", "name")

    module = type(sys)("target")
    module.__spec__ = ForeignSpec()
    module.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "target", module)
    watcher.when_ready("target", heard.append)
    import_something_else()
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
