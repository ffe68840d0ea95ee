"""A toy library and its adapter, as distributions that exist in a scratch folder only."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

MODULES = {
    "toylib/__init__.py": "",
    "toylib/scores.py": """
        def score(a, b=1):
            '''Add.'''
            return a + b

        class Scorer:
            def __call__(self, a):
                return 2 * a

            @staticmethod
            def mask(a):
                return a > 0
        """,
    "toyadapter/__init__.py": """
        from li_plugins.api import Adapter, Target, hookimpl

        @hookimpl
        def li_plugins_adapters():
            return [Adapter("toy", requires="toylib>=1,<2", targets=[
                Target("toylib.scores:score", "toyadapter.scores:score"),
                Target("toylib.scores:Scorer.__call__", "toyadapter.scores:double"),
                Target("toylib.scores:Scorer.mask", "toyadapter.scores:mask"),
            ])]
        """,
    "toyadapter/scores.py": """
        from li_plugins.api import Decline

        def score(a, b=1):
            return Decline("a is odd") if a % 2 else 1000 + a + b

        def double(self, a):
            return 1000 + 2 * a

        def mask(a):
            return a > 0
        """,
}


@pytest.fixture
def toy(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that writes the library (of a version) and the adapter, each module through ``edit``."""
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    for name in ("LI_PLUGINS", "LI_PLUGINS_STRICT", "LI_PLUGINS_UNTESTED", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)

    def write(version: str = "1.5", edit: Callable[[str, str], str] = lambda path, text: text) -> None:
        for path, text in MODULES.items():
            file = pytester.path / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(edit(path, textwrap.dedent(text)))
        for name, number, points in (("toylib", version, ""), ("toyadapter", "1.0", "toy = toyadapter")):
            folder = pytester.mkdir(f"{name}-{number}.dist-info")
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
            (folder / "entry_points.txt").write_text(f"[li_plugins]\n{points}\n")

    return write
