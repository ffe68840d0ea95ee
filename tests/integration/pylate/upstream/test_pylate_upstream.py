"""PyLate's own tests and doctests, unmodified and offline, with the adapter enabled.

They come with the source distribution of the installed release, which pip fetches; ``PYLATE_SOURCE`` names a checkout
in its place. They run in a scratch folder, so that they meet the installed PyLate, not the sources beside them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import stand_ins
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
RELEASE = version("pylate")
DOCTESTS = ("scores", "losses", "rank", "retrieve", "evaluation", "models", "utils")
SETTINGS = """\
[pytest]
# as in PyLate's own configuration
doctest_optionflags = NORMALIZE_WHITESPACE NUMBER
markers =
    flaky: of a plugin that reruns tests
    model_loading: downloads models
    slow: takes long
    web: needs a network
# a test may name a backend that is not ours; how much was is checked at the end
li_plugins_fallback = allow
"""

pytestmark = [pytest.mark.switches, pytest.mark.timeout(1500)]


class Suite(NamedTuple):
    """A finished run."""

    outcomes: dict[str, str]
    """Test to ``passed``, ``skipped`` or, if it failed, what it said."""
    accounts: dict[str, Any]
    log: str

    def named(self, outcome: str) -> list[str]:
        return [test for test, found in self.outcomes.items() if found == outcome]


def sources(folder: Path) -> Path:
    """Return a folder with PyLate's tests."""
    given = os.environ.get("PYLATE_SOURCE")
    if given:
        return Path(given)
    command = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"pylate=={RELEASE}"]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    with tarfile.open(next(folder.glob("pylate-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"pylate-{RELEASE}"


def deselections() -> list[dict[str, str]]:
    """Return the entries of the list that are about this release."""
    entries = tomllib.loads((HERE / "deselect.toml").read_text())["deselect"]
    return [entry for entry in entries if RELEASE in SpecifierSet(entry.get("releases", ""))]


def outcomes(report: Path) -> dict[str, str]:
    """Read a JUnit report: what became of each test."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        result = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = "passed" if result is None else "skipped" if result.tag == "skipped" else str(result.text)
    return found


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    folder = tmp_path_factory.mktemp("upstream")
    source = sources(tmp_path_factory.mktemp("source"))
    shutil.copytree(source / "tests", folder / "tests")
    if (source / "conftest.py").exists():
        shutil.copy(source / "conftest.py", folder)
    (folder / "pytest.ini").write_text(SETTINGS)
    stand_ins.write(folder)
    environment = {
        **os.environ,
        "ACCOUNTS": str(folder / "accounts.json"),
        "DESELECT": json.dumps([entry["test"] for entry in deselections()]),
        "HF_HOME": str(folder / "huggingface"),  # one of the tests deletes the hub's cache
        "HF_HUB_OFFLINE": "1",
        "LI_PLUGINS": "pylate",
        "LI_PLUGINS_STRICT": "1",
        "PYTHONPATH": str(HERE),
    }
    arguments: Sequence[str] = [
        *("tests", "--doctest-modules", "--pyargs", *(f"pylate.{name}" for name in DOCTESTS)),
        *("-p", "accounts", "-p", "no:cacheprovider", "--junitxml=report.xml", "-q", "--tb=short", "-ra"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    log = done.stdout + done.stderr
    print(log)
    assert (folder / "report.xml").exists(), log
    return Suite(outcomes(folder / "report.xml"), json.loads((folder / "accounts.json").read_text()), log)


def test_what_passes_in_pylate_passes_with_the_adapter(suite: Suite) -> None:
    failed = {test: said for test, said in suite.outcomes.items() if said not in ("passed", "skipped")}
    assert not failed, "\n\n".join(f"{test}\n{said}" for test, said in failed.items())
    assert len(suite.named("passed")) >= 15, suite.log


def test_the_scores_are_ours(suite: Suite) -> None:
    """Every target was called, the kernels ran, and only a backend that a test names by itself was declined."""
    assert set(suite.accounts["states"].values()) == {"patched"}
    never = [target for target, calls in suite.accounts["calls"].items() if not calls]
    assert not never, suite.accounts
    assert suite.accounts["kernels"].get("maxsim blocked", 0) > 0
    assert suite.accounts["kernels"].get("maxsim backward blocked", 0) > 0
    reasons = [reason for reasons in suite.accounts["declines"].values() for reason in reasons]
    assert not [reason for reason in reasons if not reason.startswith("backend=")], suite.accounts


def test_every_line_of_the_list_has_a_reason_and_an_effect(suite: Suite) -> None:
    for entry in deselections():
        assert entry["reason"].strip()
        assert entry["test"] in suite.accounts["deselected"], f"PyLate {RELEASE} has no test {entry['test']}"
