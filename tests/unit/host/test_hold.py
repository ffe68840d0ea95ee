"""Classes and C callables are replaced where their owner holds them, and come back as the identical objects."""

from __future__ import annotations

import importlib
import inspect
import math
import pickle

import pytest

from li_plugins.api import Decline
from li_plugins.errors import PatchRefused, RestoreRefused
from li_plugins.host import patch

SOURCE = """
import math
from math import sqrt

class Holder(list):
    root = math.sqrt
    static = staticmethod(math.sqrt)
    add = list.append
    fresh = classmethod(math.sqrt)

class Scorer:
    def __init__(self, rate=1):
        self.rate = rate

    def score(self):
        return ("library", self.rate)

Native = int
"""


@pytest.fixture
def lib(site):
    site.module("lib", SOURCE)
    return importlib.import_module("lib")


def root(x, /):
    return ("ours", x) if x >= 0 else Decline("negative")


def test_a_c_function_of_a_module(lib, patched):
    taken_by_value = lib.sqrt
    record = patched("lib:sqrt", root)
    assert lib.sqrt(4) == ("ours", 4)
    with pytest.raises(ValueError):  # noqa: PT011  # its words differ between Pythons
        lib.sqrt(-1)
    assert taken_by_value(4) == 2
    assert record.counters.calls == 2
    assert record.counters.declines == {"negative": 1}
    assert record.original is math.sqrt
    assert patch.original(lib.sqrt) is math.sqrt
    assert patch.record_of(lib.sqrt) is record
    patch.undo(record)
    assert lib.sqrt is math.sqrt
    assert not [name for name in vars(lib) if name.startswith("__li_plugins")]


def test_it_looks_like_what_it_replaces(lib, patched):
    patched("lib:sqrt", root)
    assert lib.sqrt.__name__ == "sqrt"
    assert lib.sqrt.__doc__ == math.sqrt.__doc__
    assert inspect.signature(lib.sqrt) == inspect.signature(math.sqrt)
    assert pickle.loads(pickle.dumps(lib.sqrt)) is lib.sqrt


@pytest.mark.parametrize("name", ["root", "static"])
def test_a_c_function_of_a_class_does_not_bind(lib, patched, name):
    held = vars(lib.Holder)[name]
    record = patched(f"lib:Holder.{name}", root)
    assert getattr(lib.Holder(), name)(4) == getattr(lib.Holder, name)(4) == ("ours", 4)
    patch.undo(record)
    assert vars(lib.Holder)[name] is held
    assert getattr(lib.Holder(), name)(4) == 2


def test_a_c_method_binds(lib, patched):
    def add(self, item, /):
        return ("ours", self, item) if item else Decline("nothing")

    assert patch.record_of(lib.Holder.add) is None
    record = patched("lib:Holder.add", lambda self, object, /: add(self, object))
    holder = lib.Holder()
    assert holder.add(1) == ("ours", holder, 1)
    holder.add(0)
    assert holder == [0]
    patch.undo(record)
    assert vars(lib.Holder)["add"] is list.append


def test_a_c_class_method_stays_one(lib, patched):
    record = patched("lib:Holder.fresh", lambda x, /: ("ours", x))
    assert lib.Holder().fresh() == ("ours", lib.Holder)
    patch.undo(record)
    assert isinstance(vars(lib.Holder)["fresh"], classmethod)


def test_a_class_is_replaced_by_a_class(lib, patched):
    theirs, instance = lib.Scorer, lib.Scorer()

    class Ours(theirs):
        def score(self):
            return ("ours", self.rate)

    record = patched("lib:Scorer", Ours)
    assert lib.Scorer is Ours
    assert isinstance(lib.Scorer(3), theirs)
    assert lib.Scorer(3).score() == ("ours", 3)
    assert instance.score() == ("library", 1)
    assert patch.original(lib.Scorer) is theirs
    patch.undo(record)
    assert lib.Scorer is theirs


def test_a_class_and_a_function_do_not_replace_each_other(lib, patched):
    with pytest.raises(PatchRefused, match="is no class; a class takes a class's place"):
        patched("lib:Scorer", lambda rate=1: None)
    with pytest.raises(PatchRefused, match="is a class; a class takes a class's place"):
        patched("lib:Scorer.score", type("Score", (), {}))


def test_the_signature_of_a_class_is_gated(lib, patched):
    with pytest.raises(PatchRefused, match="parameter 1 is 'rate', in the replacement 'speed'"):
        patched("lib:Scorer", type("Ours", (), {"__init__": lambda self, speed=1: None}))


def test_a_class_made_in_c_takes_no_patch(lib, patched):
    with pytest.raises(PatchRefused, match="immutable type"):
        patched("lib:Native.bit_length", lambda self, /: 1)
    assert patch.record_of(int.bit_length) is None
    assert (3).bit_length() == 2


@pytest.mark.parametrize("name", ["sqrt", "Scorer"])
def test_the_undo_is_refused_when_somebody_replaced_it_since(lib, site, patched, name):
    file = site.module("rival", "def fast(x): ...")
    theirs = getattr(lib, name)
    record = patched(f"lib:{name}", root if name == "sqrt" else type("Ours", (lib.Scorer,), {}))
    ours = getattr(lib, name)
    setattr(lib, name, importlib.import_module("rival").fast)
    with pytest.raises(RestoreRefused, match=f"fast in {file} patched it after li-plugins"):
        patch.undo(record)
    setattr(lib, name, ours)
    patch.undo(record)
    assert getattr(lib, name) is theirs


def test_the_undo_names_what_has_no_code(lib, patched):
    record = patched("lib:sqrt", root)
    lib.sqrt = math.cbrt if hasattr(math, "cbrt") else math.floor
    with pytest.raises(RestoreRefused, match="built-in function"):
        patch.undo(record)
