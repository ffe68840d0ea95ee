"""Bodies read from installed files are those of the imported functions, and nothing is imported for them."""

from __future__ import annotations

import importlib
import sys

import pytest

from li_plugins.api import Target
from li_plugins.host.bodies import describe, installed_body, known_bodies
from li_plugins.host.fingerprint import fingerprint
from li_plugins.host.names import load

SOURCE = '''
import functools, sys

if sys.platform:
    def twice(): return 1
else:
    def twice(): return 2

def plain(x):
    """Say something."""
    # and more
    return x

def other(x): return -x

@functools.lru_cache(
    maxsize=3,
)
def decorated(x):
    return f"{x}"

class Outer:
    class Inner:
        async def method(self):
            def plain(): return 3
            return plain

    @staticmethod
    def static(x): return x

made = functools.partial(plain)
'''


def test_imports_by_name_are_followed(site):
    site.module("package.sub.bodies", SOURCE)
    (site.path / "package" / "sub" / "__init__.py").write_text("from .bodies import plain as smooth, other")
    (site.path / "package" / "__init__.py").write_text("from package.sub import smooth\nfrom . import here\n")
    site.module("package.user", "from . import smooth\nfrom .sub import other\nfrom .user import circle\nimport json")
    assert installed_body("package.user:smooth") == installed_body("package.sub.bodies:plain") is not None
    assert installed_body("package.user:other") == installed_body("package.sub.bodies:other") is not None
    assert installed_body("package.user:circle") is None
    assert installed_body("package:here") is None
    assert installed_body("package.user:json") is None
    assert "package" not in sys.modules


@pytest.mark.parametrize("name", ["plain", "decorated", "Outer.Inner.method", "Outer.static"])
def test_the_file_tells_what_the_import_would(site, name):
    site.module("package.sub.bodies", SOURCE)
    found = installed_body(f"package.sub.bodies:{name}")
    assert "package" not in sys.modules
    importlib.import_module("package.sub.bodies")
    assert found == fingerprint(load(f"package.sub.bodies:{name}"))
    assert found != installed_body("package.sub.bodies:other")


@pytest.mark.parametrize(
    "path",
    [
        "package.sub.bodies:twice",
        "package.sub.bodies:made",
        "package.sub.bodies:Outer",
        "package.sub.bodies:Outer.plain",
        "package.sub.none:plain",
        "package.bodies.none:plain",
        "nowhere:plain",
        "package.broken:plain",
        "math:sqrt",
    ],
)
def test_what_only_an_import_can_tell(site, path):
    site.module("package.sub.bodies", SOURCE)
    site.module("package.broken", "def plain(:\n")
    assert installed_body(path) is None


def test_known_bodies_of_a_target_and_its_helpers():
    bodies = {"1.0": "aaaaaaaa", "1.1": "dddddddd", "1.2": "aaaaaaaa"}
    target = Target("lib:f", "ours:f", bodies=bodies, also={"lib:g": ["bbbbbbbb", "cccccccc"]})
    known = known_bodies(target)
    assert known == {
        "lib:f": {"aaaaaaaa": "1.0, 1.2", "dddddddd": "1.1"},
        "lib:g": {"bbbbbbbb": "", "cccccccc": ""},
    }
    assert describe(known["lib:f"]) == "aaaaaaaa (1.0, 1.2), dddddddd (1.1)"
    assert describe(known["lib:g"]) == "bbbbbbbb, cccccccc"
    assert describe({}) == "none"
