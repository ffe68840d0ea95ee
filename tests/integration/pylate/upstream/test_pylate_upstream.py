"""PyLate's own tests and doctests with the adapter enabled; ``PYLATE_SOURCE`` names a checkout to take them from."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import stand_ins

from li_plugins.testing import upstream
from li_plugins.testing.upstream import Suite

RELEASE = version("pylate")
DOCTESTS = ("scores", "losses", "rank", "retrieve", "evaluation", "models", "utils")
DESELECTIONS = upstream.deselections(Path(__file__).with_name("deselect.toml"), RELEASE)
KERNELS = {f"{operation}{way} blocked" for operation in ("maxsim", "xtr_maxsim") for way in ("", " backward")}
OPTIONS = """\
doctest_optionflags = NORMALIZE_WHITESPACE NUMBER
markers =
    flaky: of a plugin that reruns tests
    model_loading: downloads models
    slow: takes long
    web: needs a network"""

pytestmark = [pytest.mark.switches, pytest.mark.timeout(1500)]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    folder = tmp_path_factory.mktemp("upstream")
    stand_ins.write(folder)
    tests = ["tests", "--doctest-modules", "--pyargs", *(f"pylate.{name}" for name in DOCTESTS)]
    source = upstream.sources("pylate", RELEASE, tmp_path_factory.mktemp("source"))
    return upstream.run(folder, source, "pylate", tests, DESELECTIONS, OPTIONS)


def test_what_passes_in_pylate_passes_with_the_adapter(suite: Suite) -> None:
    assert not suite.failures, "\n\n".join(f"{test}\n{said}" for test, said in suite.failures.items())
    assert len(suite.named("passed")) >= 100, suite.log  # 110 of them did


def test_the_scores_are_ours(suite: Suite) -> None:
    """Every target answered, the kernels ran, and only a backend that a test names by itself was declined."""
    assert set(suite.accounts["states"].values()) == {"patched"}
    unserved = [target for target, calls in suite.served.items() if calls <= 0]
    assert not unserved, suite.accounts
    assert suite.accounts["kernels"].keys() >= KERNELS, suite.accounts
    assert suite.accounts["ragged"].get("maxsim", 0) > 0, suite.accounts
    reasons = [reason for reasons in suite.accounts["declines"].values() for reason in reasons]
    assert not [reason for reason in reasons if not reason.startswith("backend=")], suite.accounts


def test_every_line_of_the_list_has_a_reason_and_an_effect(suite: Suite) -> None:
    for entry in DESELECTIONS:
        assert entry["reason"].strip()
        assert entry["test"] in suite.accounts["deselected"], f"PyLate {RELEASE} has no test {entry['test']}"
