"""sentence-transformers' own tests of multi-vector models with the adapter enabled.

They are in no distribution: ``SENTENCE_TRANSFORMERS_SOURCE`` names a checkout of the release, or git clones one.
"""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from li_plugins.testing import tiny_bert, upstream
from li_plugins.testing.upstream import Suite

RELEASE = version("sentence-transformers")
DESELECTIONS = upstream.deselections(Path(__file__).with_name("deselect.toml"), RELEASE)
REPOSITORY = "https://github.com/huggingface/sentence-transformers"
VARIABLE = "SENTENCE_TRANSFORMERS_SOURCE"
STAND_INS = ("sentence-transformers-testing/stsb-bert-tiny-safetensors", "hf-internal-testing/tiny-random-bert")
"""Models that the tests ask the hub for; a folder of the same name comes first. None asserts what the weights say."""
TESTS = ("tests/util/test_similarity.py", "tests/multi_vector_encoder", "-m", "not slow and not custom")
OPTIONS = """\
markers =
    slow: takes long
    custom: needs modules of third parties
filterwarnings =
    default"""

pytestmark = [pytest.mark.switches, pytest.mark.timeout(900)]


def sources(folder: Path) -> Path:
    """Return a checkout with the tests of the installed release."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", f"v{RELEASE}", REPOSITORY, str(folder / "clone")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(
            f"no tests of sentence-transformers {RELEASE}: {done.stderr.strip()}; let {VARIABLE} name a checkout",
            pytrace=False,
        )
    return folder / "clone"


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    source = sources(tmp_path_factory.mktemp("source"))
    folder = tmp_path_factory.mktemp("upstream")
    for name in STAND_INS:
        tiny_bert.write(folder / name)
    return upstream.run(folder, source, "sentence-transformers", TESTS, DESELECTIONS, OPTIONS)


def test_what_passes_in_the_library_passes_with_the_adapter(suite: Suite) -> None:
    assert not suite.failures, "\n\n".join(f"{test}\n{said}" for test, said in suite.failures.items())
    assert len(suite.named("passed")) >= 300, suite.log


def test_the_scores_are_ours(suite: Suite) -> None:
    """Every target answered, and the kernels ran; their tests go back through no XTR scores."""
    assert set(suite.accounts["states"].values()) == {"patched"}
    unserved = [target for target, calls in suite.served.items() if calls <= 0]
    assert not unserved, suite.accounts
    assert suite.accounts["kernels"].get("maxsim blocked", 0) > 300
    assert suite.accounts["kernels"].keys() >= {"maxsim backward blocked", "xtr_maxsim blocked"}, suite.accounts
    assert suite.accounts["ragged"].get("maxsim", 0) > 0, suite.accounts


def test_every_line_of_the_list_has_a_reason_and_an_effect(suite: Suite) -> None:
    for entry in DESELECTIONS:
        assert entry["reason"].strip()
        assert entry["test"] in suite.accounts["deselected"], f"{RELEASE} has no test {entry['test']}"
