"""Patches, sessions and watches of a test of their own, which leave nothing behind when it ends."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

import patched_library
import pytest

from li_plugins.api import Target
from li_plugins.errors import RestoreRefused
from li_plugins.host import patch
from li_plugins.host.session import Session
from li_plugins.host.watch import Watcher


@pytest.fixture
def patched():
    """Patch ``path`` with a function and return the record; keywords are the target's, or ``apply``'s own."""
    records = []

    def patched(path, replacement, *, adapter="fake", untested=False, on_decline=lambda *_: None, **target):
        asked = Target(path, "fake_replacements:it", **target)
        record = patch.apply(adapter, asked, replacement, version="1.5", untested=untested, on_decline=on_decline)
        records.append(record)
        return record

    yield patched
    for record in reversed(records):
        try:
            patch.undo(record)
        except RestoreRefused:  # the test took the function over and its module is about to be forgotten
            patch._live = tuple(other for other in patch._live if other is not record)


@pytest.fixture
def lib(site):
    site.module("lib.core", patched_library.CORE)
    site.module("lib.user", patched_library.USER)
    return importlib.import_module("lib.core")


@pytest.fixture
def user(lib):
    return importlib.import_module("lib.user")


@pytest.fixture
def session(site):
    """Return a session of its own; whatever it patched is given back."""
    found = Session()
    yield found
    with suppress(RestoreRefused):
        found.close()


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


@pytest.fixture
def import_something_else(site):
    """Import another module, when called: what waits for the next import sees one."""

    def now():
        site.module("something_else", "")
        importlib.invalidate_caches()
        import something_else  # noqa: F401

    return now
