"""Index folders that colbert-ai wrote, compared: with the plugin and without, of other settings, and as recorded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_colbert
import torch
from conftest import Library

from li_plugins.index_diff.capture import Capture
from li_plugins.index_diff.comparison import compare
from li_plugins.index_diff.folder import IndexFolder
from li_plugins.index_diff.layers import compare_layers
from li_plugins.index_diff.rankings import best
from li_plugins.index_diff.replay import replay
from li_plugins.ops import decompress

MADE_OF_CENTROIDS = ["centroids", "buckets", "avg_residual", "codes", "residuals", "ivf"]


def states(report: Any) -> dict[str, str]:
    return {finding.artifact: finding.state for finding in report.findings}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return tiny_colbert.passages()


def test_an_index_of_the_library_and_one_of_ours(
    checkpoint: Path, tmp_path: Path, texts: list[str], library: Library
) -> None:
    ours = tiny_colbert.build(checkpoint, tmp_path, texts)
    again = tiny_colbert.build(checkpoint, tmp_path, texts, name="again")
    with library():
        theirs = tiny_colbert.build(checkpoint, tmp_path, texts, name="theirs")
        from colbert.indexing.codecs.residual import ResidualCodec

        codec = ResidualCodec.load(index_path=str(theirs))
        expected = codec.decompress(ResidualCodec.Embeddings.load(str(theirs), 0))
    assert set(states(compare(ours, again)).values()) == {"identical"}
    # every file of the library's is read, and as it reads them
    folder = IndexFolder(theirs)
    assert not folder.strangers
    found = decompress(folder.codes(0), folder.residuals(0), folder.codec.centroids, folder.codec.weights, nbits=2)
    assert torch.equal(found, expected)
    # our k-means is another one than faiss's; all that is not made of centroids is the same
    report = compare(theirs, ours)
    found = states(report)
    assert report.diagnosis.first == "centroids"
    assert [cause.artifact for cause in report.diagnosis.causes] == ["centroids"]
    rest = found.keys() - {*MADE_OF_CENTROIDS, "reconstruction"}
    assert {found[name] for name in rest} == {"identical"}
    assert report.finding("ivf").figures["cells_that_codes_contradict"] == [0, 0]
    assert report.finding("reconstruction").figures["mean_cosine"] > 0.9


def test_other_bits(checkpoint: Path, tmp_path: Path, texts: list[str]) -> None:
    two = tiny_colbert.build(checkpoint, tmp_path, texts)
    four = tiny_colbert.build(checkpoint, tmp_path, texts, name="four", nbits=4)
    report = compare(two, four)
    assert {name for name, state in states(report).items() if state == "differs"} == {
        "settings", "buckets", "residuals", "reconstruction"
    }  # fmt: skip
    assert [cause.artifact for cause in report.diagnosis.causes] == ["settings"]


@pytest.mark.allow_fallback(reason="passages that are given come between the stages of rank")
def test_rankings_are_those_of_a_search_of_all_passages(checkpoint: Path, tmp_path: Path, texts: list[str]) -> None:
    index = tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    queries = searcher.encode(texts[::7])
    found = best(IndexFolder(index), queries.float(), 10)
    for row, query in enumerate(texts[::7]):
        pids, _, scores = searcher.search(query, k=10, pids=list(range(len(texts))))
        assert found.scores[row].tolist() == pytest.approx(scores, abs=1e-3)
        assert found.passages[row, 0] == pids[0]
    path = tmp_path / "queries.pt"
    torch.save(queries, path)
    assert states(compare(index, index, queries=path))["rankings"] == "identical"


SCRIPT = """
import sys
from pathlib import Path

import tiny_colbert


def encode(config, *arguments):
    from colbert.indexing.collection_indexer import encode
    import torch

    # as a model that draws another number of random values when it is made
    torch.rand(int(arguments[-1]))
    return encode(config, *arguments[:-1])


if __name__ == "__main__":
    checkpoint, root, name, drawn, *resumed = sys.argv[1:]
    texts = tiny_colbert.passages()
    from colbert.infra import Run, RunConfig
    from colbert.infra.launcher import Launcher

    with Run().context(RunConfig(nranks=1, root=root, experiment="tests")):
        in_child = name == "one"  # as the library does by default; what it imports takes as long as all else
        settings = tiny_colbert.config(
            Path(checkpoint), Path(root), avoid_fork_if_possible=not in_child, index_name=name, resume=bool(resumed)
        )
        Path(settings.index_path_).mkdir(parents=True, exist_ok=bool(resumed))
        launcher = Launcher(encode)
        launch = launcher.launch if in_child else launcher.launch_without_fork
        launch(settings, texts, [[]], [], 0, drawn)
"""


@pytest.fixture(scope="module")
def record(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that builds an index under ``capture``; that of the name `one` in a child process."""
    root = tmp_path_factory.mktemp("recorded")
    script = root / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "LI_PLUGINS": "colbert"}

    def build(name: str, drawn: int, *options: str, resumed: bool = False, **variables: str) -> Path:
        command = [sys.executable, "-m", "li_plugins", "index-diff", "capture", *options, str(script)]
        done = subprocess.run(
            [*command, str(checkpoint), str(root), name, str(drawn), *(["resumed"] if resumed else [])],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return root / "tests/indexes" / name

    return build


@pytest.fixture(scope="module")
def recorded(record: Any) -> tuple[Path, Path]:
    """Return two captured builds, the second after another number of random draws."""
    return record("one", 0), record("two", 7)


def test_another_random_state_is_found_and_tested(recorded: tuple[Path, Path], record: Any) -> None:
    one, two = recorded
    report = compare(one, two)
    assert report.diagnosis.first == "rng"
    (cause,) = report.diagnosis.causes
    assert set(cause.explains) == set(MADE_OF_CENTROIDS)
    found = states(report)
    assert {found[name] for name in ("sampled passages", "sample", "embeddings", "doclens")} == {"identical"}
    assert set(states(compare(one, record("three", 7, "--inject", f"rng={one}"))).values()) == {"identical"}


def test_what_was_recorded_is_what_the_index_was_made_of(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = recorded
    capture, folder = Capture(one), IndexFolder(one)
    assert torch.equal(capture.centroids.half(), folder.centroids)
    assert capture.embeddings(0).shape == (int(folder.lengths.sum()), 64)
    assert capture.environment["torch"] == torch.__version__
    replay(one, one, (), tmp_path / "again")
    assert set(states(compare(one, tmp_path / "again")).values()) == {"identical"}
    replay(one, two, ["centroids", "buckets"], tmp_path / "injected")
    report = compare(one, tmp_path / "injected")
    assert [name for name, state in states(report).items() if state != "identical"] == ["rng"]


def test_a_build_that_is_resumed_goes_on_with_its_capture(recorded: tuple[Path, Path], record: Any) -> None:
    killed = shutil.copytree(recorded[1], recorded[1].with_name("five"))
    for name in ("0.codes.pt", "0.metadata.json", "metadata.json", "ivf.pid.pt", "capture/manifest.json"):
        (killed / name).unlink()  # as a build leaves it that is killed before the first chunk is written
    assert record("five", 7, resumed=True) == killed
    assert set(states(compare(recorded[1], killed)).values()) == {"identical"}


def test_a_capture_that_an_index_built_anew_inherits_is_left_out(
    recorded: tuple[Path, Path], checkpoint: Path, tmp_path: Path, texts: list[str]
) -> None:
    one, inherited = recorded[0], tmp_path / "tests/indexes/index"
    shutil.copytree(one, inherited)
    assert "sample" in states(compare(one, inherited))
    assert tiny_colbert.build(checkpoint, tmp_path, texts[::-1]) == inherited
    assert (inherited / "capture").is_dir()
    found = states(compare(one, inherited))
    assert found["capture"] == "left out"
    assert not {"sampled passages", "sample", "rng", "embeddings"} & found.keys()


def test_layers(recorded: tuple[Path, Path], record: Any) -> None:
    one, two = recorded
    report = compare_layers(str(one), str(two))
    assert report.same
    assert [layer.name for layer in report.layers] == ["embeddings", "layer 0", "layer 1", "projection"]
    assert {layer.max_abs for layer in report.layers} == {0.0}
    # the same sums in another order
    other = record("four", 0, ATEN_CPU_CAPABILITY="default")
    report = compare_layers(str(one), str(other))
    assert report.same
    instructions = [Capture(index).environment["CPU instructions"] for index in (one, other)]
    if instructions[0] != instructions[1]:  # else this machine has no others
        assert report.notes == (f"Environment: CPU instructions {instructions[0]} and {instructions[1]}",)
        assert any(layer.max_abs for layer in report.layers)
