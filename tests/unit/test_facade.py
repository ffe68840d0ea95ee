"""The public door: cheap to import, lazy, and the same session behind every function."""

from __future__ import annotations

import inspect
import json
import typing

import pytest

import li_plugins
from li_plugins.errors import UnknownAdapter

HEAVY = ("torch", "triton", "numpy", "pluggy", "packaging", "importlib.metadata", "rich", "click", "li_plugins.host")

MEASURE = f"""
import sys, time
start = time.process_time()  # other processes may share the cores
import li_plugins
seconds = time.process_time() - start
import json
print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def test_import_costs_under_20_ms_and_loads_nothing_heavy(site):
    found = [json.loads(site.python(MEASURE).stdout) for _ in range(3)]
    assert min(seconds for seconds, _ in found) < 0.020
    assert found[0][1] == []


def test_the_door_is_small_and_says_what_it_holds():
    assert dir(li_plugins) == sorted(li_plugins.__all__)
    assert set(li_plugins.__all__) == {
        "__version__", "disable_all", "enable", "enable_all", "explain", "original", "status", "suspended",
    }  # fmt: skip
    for name in li_plugins.__all__:
        value = getattr(li_plugins, name)
        if name != "__version__":
            assert inspect.getdoc(value)
            assert "return" in value.__annotations__


def test_the_version_is_that_of_the_installed_distribution():
    from importlib.metadata import version

    assert li_plugins.__version__ == version("li-plugins")


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'enabel'"):
        li_plugins.enabel  # noqa: B018 - the access is the test
    assert not hasattr(li_plugins, "torch")


def test_the_annotations_name_real_classes():
    from li_plugins.host.report import Explanation, Status

    assert li_plugins.status.__annotations__["return"] == Status.__name__
    assert li_plugins.explain.__annotations__["return"] == Explanation.__name__
    assert typing.get_type_hints(li_plugins.status, {"Status": Status})["return"] is Status


@pytest.fixture
def enabled(site):
    """Make one fake adapter known to a fresh process-wide session."""
    import li_plugins.host.session as module

    site.adapter()
    former, module.SESSION = module.SESSION, module.Session()
    yield
    module.SESSION.close()
    module.SESSION = former


def test_the_whole_life_through_the_door(enabled):
    import fakelib.scores as library

    code = library.score.__code__
    status = li_plugins.enable("fake")
    assert ("fakelib.scores:score", "patched") in [(row.target, row.state) for row in status.rows]
    assert library.score(1) == ("ours", 1, 1)
    assert li_plugins.original(library.score)(1) == ("library", 1, 1)
    assert "kernel fast for 1" in str(li_plugins.explain(library.score, 1))
    with li_plugins.suspended():
        assert library.score.__code__ is code
    assert li_plugins.status().rows
    li_plugins.disable_all()
    assert library.score.__code__ is code
    assert li_plugins.original(library.score) is library.score
    li_plugins.enable_all()
    assert library.score(1) == ("ours", 1, 1)


def test_an_unknown_adapter_names_the_nearest(enabled):
    with pytest.raises(UnknownAdapter, match="did you mean 'pylate'"):
        li_plugins.enable("pylatte")
