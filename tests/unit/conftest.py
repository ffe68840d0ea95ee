"""A folder that plays site-packages: fake libraries, fake plugins, fake distributions, and processes that see them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

LIBRARY = """
def score(x, y=1):
    return ("library", x, y)

def other(x):
    return ("library", x)

class Scorer:
    def __call__(self, x):
        return ("library", x)
"""

BODIES = {"score": {"1.5": "7ba63937"}, "call": {"1.5": "4672e0c6"}}
"""Fingerprints of ``LIBRARY``'s functions."""

REPLACEMENTS = """
from li_plugins.api import Decline

def score(x, y=1):
    if x == "decline":
        return Decline("x is 'decline'")
    return ("ours", x, y)

def explain_score(x, y=1):
    return Decline("x is 'decline'") if x == "decline" else f"kernel fast for {x!r}\\nrejected slow: it is slow"

def other(x):
    return ("ours", x)

def call(self, x):
    return ("ours", x)
"""


class Site:
    """Writes modules and distribution metadata into a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def module(self, name: str, source: str) -> Path:
        """Write a module; missing parent packages are made."""
        parts = name.split(".")
        folder = self.path
        for parent in parts[:-1]:
            folder = folder / parent
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        file = folder / f"{parts[-1]}.py"
        file.write_text(dedent(source))
        return file

    def distribution(self, name: str, version: str = "1.0", entry_points: dict[str, str] | None = None) -> None:
        """Write the metadata of an installed distribution; ``entry_points`` are those of the group ``li_plugins``."""
        folder = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{key} = {value}" for key, value in (entry_points or {}).items()]
        (folder / "entry_points.txt").write_text("\n".join(["[li_plugins]", *lines, ""]))

    def plugin(self, name: str, source: str) -> None:
        """Write a plugin's module and the distribution whose entry point names it."""
        self.module(f"{name}_plugin", "from li_plugins.api import Adapter, Kernel, Target, hookimpl\n" + dedent(source))
        self.distribution(f"{name}-plugin", entry_points={name: f"{name}_plugin"})

    def adapter(
        self,
        name: str = "fake",
        *,
        requires: str = "",
        targets: str = "",
        version: str = "1.5",
        library: str = LIBRARY,
        replacements: str = REPLACEMENTS,
        fields: str = "",
    ) -> None:
        """Write a library called ``<name>lib`` with an adapter ``name`` for it, distributions included.

        By default it has the targets ``score``, with a dry run, and ``Scorer.__call__`` in ``<name>lib.scores``.
        ``fields`` are further ones of the adapter: ``", opt_in=True"``.
        """
        self.module(f"{name}lib.scores", library)
        self.distribution(f"{name}lib", version)
        self.module(f"{name}_replacements", replacements)
        targets = targets or (
            f'Target("{name}lib.scores:score", "{name}_replacements:score", bodies={BODIES["score"]},'
            f' explain="{name}_replacements:explain_score"),'
            f'Target("{name}lib.scores:Scorer.__call__", "{name}_replacements:call", bodies={BODIES["call"]})'
        )
        self.plugin(
            name,
            f"""
            @hookimpl
            def li_plugins_adapters():
                return [Adapter("{name}", "{requires or name + "lib>=1,<2"}", [{targets}]{fields})]
            """,
        )

    def python(self, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run code in a fresh interpreter that sees this folder; no variable of ours is inherited."""
        return self.run("-c", dedent(code), *arguments, **environment)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``python`` with these arguments, as ``python`` above."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LI_PLUGINS")}
        path = os.pathsep.join(filter(None, [str(self.path), inherited.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *arguments],
            env={**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return the folder, on ``sys.path`` here; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in os.environ if name.startswith("LI_PLUGINS")]:
        monkeypatch.delenv(name)
    yield Site(folder)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
