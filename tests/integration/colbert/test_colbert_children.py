"""Children of colbert-ai's launcher, really spawned: patched where their parent is, by the environment or in code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from own_process import HERE, python


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Return what children said whose parent enabled the adapter in code."""
    lines = python(HERE / "children.py").stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("found ")]
    return json.loads(line.removeprefix("found "))


def is_patched(child: dict[str, Any]) -> bool:
    assert child["variable"] is None
    answers = child["kernels"] == 1, child["calls"] == 1, "patched" in child["states"]
    assert len(set(answers)) == 1, child
    return answers[0]


def test_every_rank_is_patched(found: dict[str, Any]) -> None:
    children = found["enabled"]
    assert [child["rank"] for child in children] == [0, 1]
    assert len({found["pid"], *(child["pid"] for child in children)}) == 3
    assert [child["arguments"] for child in children] == [["given"], ["given"]]
    assert all(map(is_patched, children))


def test_no_child_without_fork(found: dict[str, Any]) -> None:
    assert found["here"]["pid"] == found["pid"]
    assert is_patched(found["here"])


def test_the_child_of_a_trainer_is_patched(found: dict[str, Any]) -> None:
    assert found["trainer"]["pid"] != found["pid"]
    assert found["trainer"]["arguments"] == ["triples", "queries", "collection"]
    assert is_patched(found["trainer"])


def test_what_counts_is_when_the_child_starts(found: dict[str, Any]) -> None:
    assert found["disabled"]["pid"] != found["pid"]
    assert found["disabled"]["states"] == ["off"]
    assert not is_patched(found["disabled"])


SCRIPT = """
import sys
from pathlib import Path

import tiny_colbert

if __name__ == "__main__":
    checkpoint, root = map(Path, sys.argv[1:3])
    texts = tiny_colbert.passages()
    from colbert import Indexer
    from colbert.infra import Run, RunConfig

    if sys.argv[3] == "code":
        import li_plugins

        li_plugins.enable_all()
    with Run().context(RunConfig(nranks=1, root=str(root), experiment="tests")):
        settings = tiny_colbert.config(checkpoint, root, avoid_fork_if_possible=False)
        indexer = Indexer(checkpoint=str(checkpoint), config=settings, verbose=0)
        indexer.index(name="index", collection=texts[::-1])
        indexer.index(name="index", collection=texts, overwrite="force_silent_overwrite")
    searcher = tiny_colbert.searcher(checkpoint, root, texts)
    print("found", searcher.search(texts[14], k=1)[0])
"""


@pytest.mark.parametrize("enabled_in", ["environment", "code"])
def test_children_of_the_indexer_need_no_compiler_either(checkpoint: Path, tmp_path: Path, enabled_in: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {"CXX": "/nonexistent", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    if enabled_in == "environment":
        environment["LI_PLUGINS"] = "colbert"
    done = python(script, str(checkpoint), str(tmp_path), enabled_in, **environment)
    assert "found [14]" in done.stdout
    assert not (tmp_path / "extensions").exists()
    metadata = json.loads((tmp_path / "tests/indexes/index/metadata.json").read_text())
    assert metadata["num_chunks"] == 1
    assert metadata["config"]["index_path"] is None
    assert os.listdir(tmp_path / "tests/indexes") == ["index"]
