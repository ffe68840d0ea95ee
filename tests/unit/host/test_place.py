"""A path names a place by dictionaries alone, and what cannot be patched there is refused with the reason."""

from __future__ import annotations

import functools
import importlib
import sys
from types import FunctionType

import pytest

from li_plugins.errors import PatchRefused
from li_plugins.host.place import check, find, innermost

SOURCE = """
import functools
import math

def plain(x):
    return x

def decorate(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)
    return wrapper

@decorate
@functools.lru_cache
@decorate
def decorated(x):
    return x

class Base:
    def inherited(self):
        return 1

    class Inner:
        def deep(self):
            return 1

class Heir(Base):
    @staticmethod
    def static(x):
        return x

    @classmethod
    def of_class(cls, x):
        return x

    @decorate
    def method(self):
        return 1

    @property
    def value(self):
        return 1

    def cooperative(self):
        return super().inherited()

    def __call__(self):
        return 1

def make(factor):
    def closure(x):
        return x * factor
    return closure

closure = make(2)
anonymous = lambda x: x
bound = functools.partial(plain, 1)
instance = Heir()
wrapped_c = decorate(math.sqrt)
root = math.sqrt
Path = __import__("pathlib").Path

def generator():
    yield 1

async def coroutine():
    return 1

async def asynchronous_generator():
    yield 1

asked = []

def __getattr__(name):
    asked.append(name)
    raise AttributeError(name)
"""


@pytest.fixture
def library(site):
    site.module("placelib.core", SOURCE)
    return importlib.import_module("placelib.core")


@pytest.mark.parametrize(
    "path",
    [
        "placelib.core:plain",
        "placelib.core:decorated",
        "placelib.core:anonymous",
        "placelib.core:Base.inherited",
        "placelib.core:Base.Inner.deep",
        "placelib.core:Heir.static",
        "placelib.core:Heir.of_class",
        "placelib.core:Heir.method",
        "placelib.core:Heir.__call__",
    ],
)
def test_functions_are_found_below_methods_and_decorators(library, path):
    place = find(path)
    check(place)
    assert type(place.function) is FunctionType
    assert place.function.__code__.co_name in (path.rpartition(".")[2], path.rpartition(":")[2], "<lambda>")
    assert place.held is vars(place.owner)[place.name]


def test_classes_and_c_callables_are_found(library):
    for path in ("placelib.core:Base.Inner", "placelib.core:root"):
        check(find(path))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("placelib.absent:plain", "placelib.absent is not imported"),
        ("placelib.core:plane", "there is no 'plane'; found plain"),
        (
            "placelib.core:Heir.inherited",
            "Heir inherits 'inherited' from placelib.core:Base; .* placelib.core:Base.inh",
        ),
        ("placelib.core:Heir.Inner.deep", "Heir inherits 'Inner' from placelib.core:Base"),
        ("placelib.core:instance.method", "'instance' is an instance of placelib.core.Heir; only classes own methods"),
        ("placelib.core:closure", "it is a closure over factor"),
        ("placelib.core:Heir.cooperative", "it is a closure over __class__"),
        ("placelib.core:generator", "it is a generator function"),
        ("placelib.core:coroutine", "it is a coroutine function"),
        ("placelib.core:asynchronous_generator", "it is an asynchronous generator function"),
        ("placelib.core:Heir.value", "it is an instance of builtins.property"),
        ("placelib.core:bound", "it is an instance of functools.partial"),
        ("placelib.core:instance", "it is an instance of placelib.core.Heir"),
        ("placelib.core:wrapped_c", "it decorates an instance of builtins.builtin_function_or_method"),
        ("placelib.core:Path", "it is pathlib.*:Path; placelib.core does not define it"),
    ],
)
def test_refusals_say_what_was_found(library, path, says):
    with pytest.raises(PatchRefused, match=says) as refusal:
        check(find(path))
    assert refusal.value.target == path
    assert all([refusal.value.found, refusal.value.known, refusal.value.remedy])


def test_nothing_is_asked_of_a_module_that_answers_by_itself(library):
    library.asked.clear()
    check(find("placelib.core:plain"))
    with pytest.raises(PatchRefused):
        find("placelib.core:lazy")
    assert library.asked == []


def test_a_function_that_somebody_rebound_is_named(library, site):
    file = site.module("rival", "def fast(x):\n    return x")
    library.plain = importlib.import_module("rival").fast
    with pytest.raises(PatchRefused, match=f"its code is fast in {file}: somebody patched it already") as refusal:
        check(find("placelib.core:plain"))
    assert library.__file__ in refusal.value.known


def test_a_function_whose_code_somebody_swapped_is_named(library, site):
    file = site.module("rival", "def fast(x):\n    return x")
    library.plain.__code__ = importlib.import_module("rival").fast.__code__
    with pytest.raises(PatchRefused, match=f"in {file}: somebody patched it already"):
        check(find("placelib.core:plain"))


def test_a_function_of_the_same_package_is_at_home(library, site):
    site.module("placelib.front", "from placelib.core import plain")
    importlib.import_module("placelib.front")
    check(find("placelib.front:plain"))


def test_a_module_without_a_package_is_its_own_home(site):
    site.module("single", "def plain(x):\n    return x")
    importlib.import_module("single")
    check(find("single:plain"))


def test_a_library_behind_a_link_is_at_home(site, tmp_path, monkeypatch):
    site.module("placelib.core", SOURCE)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "otherlib").symlink_to(site.path / "placelib")
    monkeypatch.syspath_prepend(str(tmp_path / "linked"))
    importlib.import_module("otherlib.core")
    check(find("otherlib.core:plain"))
    monkeypatch.delitem(sys.modules, "otherlib.core")
    monkeypatch.delitem(sys.modules, "otherlib")


def test_a_decorator_of_another_library_does_not_hide_the_function(library, site):
    site.module("rival", "import functools\ndef deco(fn):\n    return functools.wraps(fn)(lambda *a: fn(*a))")
    plain = library.plain
    library.plain = importlib.import_module("rival").deco(plain)
    assert find("placelib.core:plain").function is plain
    check(find("placelib.core:plain"))


@pytest.mark.parametrize("mark", ["_torchdynamo_orig_callable", "_torchdynamo_disable"])
def test_what_torch_compile_made_is_refused(library, mark):
    setattr(library.decorated, mark, True)
    with pytest.raises(PatchRefused, match=f"it carries '{mark}'"):
        check(find("placelib.core:decorated"))
    setattr(library.plain, mark, True)
    with pytest.raises(PatchRefused, match=f"it carries '{mark}'"):
        check(find("placelib.core:plain"))


def test_innermost_survives_a_circle():
    def one(): ...

    @functools.wraps(one)
    def other(): ...

    one.__wrapped__ = other
    assert innermost(one) is other
    assert innermost(len) is len
