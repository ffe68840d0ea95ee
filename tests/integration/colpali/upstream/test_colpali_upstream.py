"""colpali-engine's own tests with the adapter enabled; ``COLPALI_ENGINE_SOURCE`` names a checkout to take them from."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from li_plugins.testing import upstream
from li_plugins.testing.upstream import Suite

RELEASE = version("colpali-engine")
DESELECTIONS = upstream.deselections(Path(__file__).with_name("deselect.toml"), RELEASE)
OPTIONS = """\
markers =
    slow: downloads models
filterwarnings =
    default"""

pytestmark = [pytest.mark.switches, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    source = upstream.sources("colpali-engine", RELEASE, tmp_path_factory.mktemp("source"))
    return upstream.run(tmp_path_factory.mktemp("upstream"), source, "colpali", ["tests"], DESELECTIONS, OPTIONS)


def test_what_passes_in_the_library_passes_with_the_adapter(suite: Suite) -> None:
    assert not suite.failures, "\n\n".join(f"{test}\n{said}" for test, said in suite.failures.items())
    assert len(suite.named("passed")) >= 50, suite.log


def test_the_scores_are_ours(suite: Suite) -> None:
    """Every target answered, and the kernel ran.

    Smooth maxima are of bare numbers in their tests, and only those for a GPU go back through scores.
    """
    assert set(suite.accounts["states"].values()) == {"patched"}
    unserved = [target for target, calls in suite.served.items() if calls <= 0]
    assert not unserved, suite.accounts
    assert suite.accounts["kernels"].get("maxsim blocked", 0) > 0
    assert suite.accounts["ragged"].get("maxsim", 0) > 0, suite.accounts


def test_every_line_of_the_list_has_a_reason_and_an_effect(suite: Suite) -> None:
    for entry in DESELECTIONS:
        assert entry["reason"].strip()
        assert entry["test"] in suite.accounts["deselected"], f"colpali-engine {RELEASE} has no {entry['test']}"
