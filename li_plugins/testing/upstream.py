"""A library's own tests, unmodified and offline, with its adapter enabled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

SETTINGS = """\
[pytest]
{options}
# a test may name a backend that is not ours; how much was is checked at the end
li_plugins_fallback = allow
"""


class Suite(NamedTuple):
    """A finished run."""

    outcomes: dict[str, str]
    """Test to ``passed``, ``skipped`` or, if it failed, what it said."""
    accounts: dict[str, Any]
    """What li-plugins did there; see ``li_plugins.testing.accounts``."""
    log: str

    @property
    def served(self) -> dict[str, int]:
        """Return how many calls of each target were answered without the library's own code."""
        declines = {target: sum(reasons.values()) for target, reasons in self.accounts["declines"].items()}
        return {target: calls - declines.get(target, 0) for target, calls in self.accounts["calls"].items()}

    def named(self, outcome: str) -> list[str]:
        """Return the tests of one outcome."""
        return [test for test, found in self.outcomes.items() if found == outcome]

    @property
    def failures(self) -> dict[str, str]:
        """What each test said that neither passed nor was skipped."""
        return {test: said for test, said in self.outcomes.items() if said not in ("passed", "skipped")}


def sources(project: str, release: str, folder: Path) -> Path:
    """Return a folder with the sources of a release: a checkout that ``<PROJECT>_SOURCE`` names, or those on the index.

    Raises
    ------
    CalledProcessError
        The index has no source distribution of this release, or pip is missing.
    """
    given = os.environ.get(f"{project.replace('-', '_').upper()}_SOURCE")
    if given:
        return Path(given)
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, f"{project}=={release}"], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


def deselections(file: Path, release: str) -> list[dict[str, str]]:
    """Return the entries of a list, ``[[deselect]]`` with ``test``, ``reason`` and ``releases``, for one release."""
    entries = tomllib.loads(file.read_text())["deselect"]
    return [entry for entry in entries if release in SpecifierSet(entry.get("releases", ""))]


def run(
    folder: Path,
    source: Path,
    adapter: str,
    tests: Sequence[str],
    deselect: Sequence[dict[str, str]],
    options: str = "",
) -> Suite:
    """Run tests in a folder of their own, so that they meet the installed library, not the sources beside them.

    Parameters
    ----------
    folder
        Where to run; what the tests need beside them is there already.
    source
        Sources of the release, with a folder ``tests``.
    adapter
        Name of the adapter to enable.
    tests
        What to hand to pytest: paths and options.
    deselect
        Tests to leave out; see ``deselections``.
    options
        Lines of ``pytest.ini``, as in the library's own configuration.
    """
    shutil.copytree(source / "tests", folder / "tests")
    if (source / "conftest.py").exists():
        shutil.copy(source / "conftest.py", folder)
    (folder / "pytest.ini").write_text(SETTINGS.format(options=options))
    environment = {
        **os.environ,
        "ACCOUNTS": str(folder / "accounts.json"),
        "DESELECT": json.dumps([entry["test"] for entry in deselect]),
        "HF_HOME": str(folder / "huggingface"),  # one of PyLate's tests deletes the hub's cache
        "HF_HUB_OFFLINE": "1",
        "LI_PLUGINS": adapter,
        "LI_PLUGINS_STRICT": "1",
    }
    common = ["-p", "li_plugins.testing.accounts", "-p", "no:cacheprovider", "--junitxml=report.xml"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests, *common, "-q", "--tb=short", "-ra"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    print(log)
    if not (folder / "report.xml").exists():
        raise RuntimeError(f"the tests of {source} did not run:\n{log}")
    return Suite(_outcomes(folder / "report.xml"), json.loads((folder / "accounts.json").read_text()), log)


def _outcomes(report: Path) -> dict[str, str]:
    """Read a JUnit report: what became of each test."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        result = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = "passed" if result is None else "skipped" if result.tag == "skipped" else str(result.text)
    return found
