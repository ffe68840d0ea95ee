"""A stranger's adapter for a stranger's library, both installed beside our wheel and nothing else of the project."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import li_plugins_toycolbert
import pytest
import torch
import toycolbert
from toycolbert.ranking import Ranker
from toycolbert.scoring import score

import li_plugins
from li_plugins.testing.conformance import Conformance

TARGET = "toycolbert.scoring:score"

REPORT = """
import sys, torch, toycolbert.scoring
import li_plugins
print(*(row.state for row in li_plugins.status().rows if row.adapter == "toycolbert"), *sys.argv[1:])
"""


class TestToycolbert(Conformance):
    adapter = "toycolbert"
    preload = ("torch",)

    def arguments(self, target):
        return [torch.ones(2, 3, 16), torch.ones(4, 5, 16)], {}


@pytest.fixture
def enabled():
    li_plugins.enable("toycolbert")
    yield
    li_plugins.disable_all()


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(shape, generator=generator) for shape in ((3, 7, 16), (5, 11, 16)))
    return queries, documents, torch.rand(5, 11, generator=generator) < 0.7


def python(*arguments, **variables):
    """Run Python in a process of its own and return what it printed."""
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=variables, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return process


def test_everything_comes_from_installed_distributions():
    checkout = Path(__file__).resolve().parent
    for module in (li_plugins, li_plugins_toycolbert, toycolbert):
        assert not Path(module.__file__).is_relative_to(checkout)
        assert Path(module.__file__).is_relative_to(sys.prefix)
    assert "li-plugins" in distribution("li-plugins-toycolbert").requires


def test_scores_are_those_of_the_library_and_reach_every_holder(embeddings, enabled, li_plugins_counts):
    expected = li_plugins.original(score)(*embeddings)
    torch.testing.assert_close(score(*embeddings), expected, rtol=0, atol=1e-4)
    assert torch.equal(Ranker().rank(*embeddings), expected.argsort(dim=1, descending=True))
    assert li_plugins_counts.calls == {TARGET: 2}


def test_gradients_are_those_of_the_library(embeddings, enabled):
    queries, documents, mask = embeddings
    leaves = queries.requires_grad_(), documents.requires_grad_()
    ours = torch.autograd.grad(score(*leaves, mask).sum(), leaves)
    theirs = torch.autograd.grad(li_plugins.original(score)(*leaves, mask).sum(), leaves)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.allow_fallback(reason="integers are what it declines")
def test_integers_are_left_to_the_library(enabled, li_plugins_counts):
    ones = torch.ones(2, 3, 4, dtype=torch.int64)
    assert score(ones, ones).tolist() == [[12, 12], [12, 12]]
    assert sum(li_plugins_counts.declines[TARGET].values()) == 1


def test_the_status_names_it(enabled):
    row = next(row for row in li_plugins.status().rows if row.target == TARGET)
    assert (row.adapter, row.state) == ("toycolbert", "patched")
    assert TARGET in str(li_plugins.status())


@pytest.mark.parametrize("value", ["1", "toycolbert"])
def test_the_environment_enables_it_at_the_end_of_import_torch(value):
    assert python("-c", REPORT, LI_PLUGINS=value).stdout.strip() == "patched"


@pytest.mark.parametrize("value", ["0", ""])
def test_without_the_variable_it_stays_off(value):
    assert python("-c", REPORT, LI_PLUGINS=value).stdout.strip() == "off"


def test_the_launcher_runs_a_script_with_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(REPORT)
    assert python("-m", "li_plugins", "run", str(script), "--epochs", "3").stdout.strip() == "patched --epochs 3"


def test_the_command_line_shows_it():
    assert TARGET in python("-m", "li_plugins", "status").stdout


def test_a_broken_plugin_is_contained_and_named(tmp_path):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('out of order')")
    metadata = tmp_path / "broken_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[li_plugins]\nbroken = broken_plugin\n")
    process = python("-c", REPORT + "print(li_plugins.status())", LI_PLUGINS="1", PYTHONPATH=str(tmp_path))
    assert process.stdout.startswith("patched")
    assert "broken" in process.stdout
    assert "out of order" in process.stdout


def test_a_release_that_nobody_tested_keeps_its_own_functions(tmp_path):
    metadata = tmp_path / "toycolbert-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toycolbert\nVersion: 2.0\n")
    assert python("-c", REPORT, LI_PLUGINS="1", PYTHONPATH=str(tmp_path)).stdout.strip() == "out-of-range"
