"""An index that is built anew: searchable until its replacement is, whatever happens to the build."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import killed_builds
import pytest
import tiny_colbert
import torch
from colbert import indexer
from conftest import Library
from killed_builds import FIRST, SECOND
from li_plugins_colbert import staging
from test_colbert_index import assert_same, ranking

STAGES = list(killed_builds.stages())
IN_PLACE = [stage for stage in STAGES if stage not in ("exchange", "removal")]
TRAINED = STAGES[STAGES.index("first chunk") :]
"""Stages after which the library's own resume finds a codec."""


def content(folder: Path, *, records: bool = True) -> dict[str, bytes]:
    """Return the bytes of an index by file; without the records, which tell of paths and times."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if records or name not in ("plan.json", "metadata.json")}


def index_of(root: Path) -> Path:
    return root / "tests" / "indexes" / "index"


def beside(root: Path) -> list[str]:
    return sorted(path.name for path in index_of(root).parent.iterdir() if path.name != "index")


class Built:
    """Two indexes, and where builds of the second over the first were killed."""

    def __init__(self, checkpoint: Path, root: Path) -> None:
        self.checkpoint, self.root = checkpoint, root
        self.first = killed_builds.build(checkpoint, root / "first", FIRST)
        self.second = killed_builds.build(checkpoint, root / "second", SECOND)
        self.rankings = [ranking(tiny_colbert.searcher(checkpoint, root / name, texts))
                         for name, texts in (("first", FIRST), ("second", SECOND))]  # fmt: skip
        for stage in STAGES:
            shutil.copytree(self.first, index_of(root / "killed" / stage))
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, killed_builds.__file__, str(checkpoint), str(root / "killed"), str(root / "fresh")],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("found "))
        self.signals: dict[str, int] = json.loads(line.removeprefix("found "))

    def search(self, root: Path, texts: list[str]) -> Any:
        return ranking(tiny_colbert.searcher(self.checkpoint, root, texts))


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(checkpoint, tmp_path_factory.mktemp("rebuild"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_build_leaves_the_index(
    built: Built, stage: str, library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built.signals[f"killed/{stage}"] == signal.SIGKILL
    root = tmp_path / "root"
    shutil.copytree(built.root / "killed" / stage, root)
    is_new = stage == "removal"
    texts, expected = (SECOND, built.rankings[1]) if is_new else (FIRST, built.rankings[0])
    wanted = content(built.second if is_new else built.first, records=False)
    found = content(index_of(root), records=False)
    assert found | {staging.MARK: b""} == wanted | {staging.MARK: b""}
    capsys.readouterr()
    assert built.search(root, texts) == expected
    assert is_new != (f"{index_of(root)}.building is an index that is being built" in capsys.readouterr().out)
    with library():
        assert_same(built.search(root, texts), expected)
    # the same build, begun anew
    killed_builds.build(built.checkpoint, root, SECOND)
    assert content(index_of(root), records=False) == content(built.second, records=False)
    assert beside(root) == []
    assert built.search(root, SECOND) == built.rankings[1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_build_is_continued(built: Built, stage: str, tmp_path: Path, library: Library) -> None:
    root = tmp_path / "root"
    shutil.copytree(built.root / "killed" / stage, root)
    killed_builds.build(built.checkpoint, root, SECOND, overwrite="resume")
    assert content(index_of(root), records=False) == content(built.second, records=False)
    assert beside(root) == []
    assert built.search(root, SECOND) == built.rankings[1]
    with library():
        assert_same(built.search(root, SECOND), built.rankings[1])


@pytest.mark.parametrize("stage", IN_PLACE)
def test_a_first_build_that_is_killed(built: Built, stage: str, tmp_path: Path) -> None:
    from li_plugins_colbert.damage import DamagedIndex

    assert built.signals[f"fresh/{stage}"] == signal.SIGKILL
    root = tmp_path / "root"
    shutil.copytree(built.root / "fresh" / stage, root)
    # only from a trained codec can it go on
    advice = (
        "build the index with overwrite='resume'" if stage in TRAINED else "build the index again with overwrite=True"
    )
    message = f"No such file|metadata.json: it is missing, and is written last.*; {advice}|plan.json: .*overwrite=True"
    with pytest.raises((DamagedIndex, FileNotFoundError), match=message):
        built.search(root, SECOND)
    # in its own folder a build goes on as the library has it: from a trained codec
    overwrite = "resume" if stage in TRAINED else "force_silent_overwrite"
    killed_builds.build(built.checkpoint, root, SECOND, overwrite=overwrite)
    assert content(index_of(root), records=False) == content(built.second, records=False)
    assert beside(root) == []


@pytest.fixture
def root(built: Built, tmp_path: Path) -> Path:
    """Return a root with an index of the first texts."""
    shutil.copytree(built.first, index_of(tmp_path / "root"))
    return tmp_path / "root"


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let builds fail in the middle."""

    def fail(*_: Any) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as context:
        context.setattr("colbert.indexing.collection_indexer.optimize_ivf", fail)
        yield


def test_a_build_that_fails_leaves_the_index_and_says_what_to_do(
    built: Built, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(monkeypatch), pytest.raises(MemoryError, match="no more"):
        killed_builds.build(built.checkpoint, root, SECOND)
    said = (
        f"The index at {index_of(root)} is what it was. {index_of(root)}.building is an index that is being built, or"
    )
    assert said in capsys.readouterr().out
    assert content(index_of(root)) == content(built.first)
    assert beside(root) == ["index.building"]
    assert killed_builds.build(built.checkpoint, root, SECOND, overwrite="reuse") == index_of(root)
    assert f"{index_of(root)}.building" in capsys.readouterr().out
    assert content(index_of(root)) == content(built.first)
    killed_builds.build(built.checkpoint, root, SECOND, overwrite="resume")
    assert content(index_of(root), records=False) == content(built.second, records=False)


@pytest.mark.timeout(60)  # in the library it never ends
@pytest.mark.parametrize("number", [0, 8], ids=["the first", "the last"])
def test_a_chunk_that_cannot_be_written_ends_the_build(
    built: Built, root: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killed_builds, "CHUNK", 10)  # more of them than the library's queue takes
    own = torch.save

    def save(tensors: Any, path: str) -> None:
        if os.path.basename(path) == f"{number}.residuals.pt":
            raise OSError(errno.ENOSPC, "No space left on device", path)
        own(tensors, path)

    with monkeypatch.context() as context:
        context.setattr(torch, "save", save)
        with pytest.raises(OSError, match=rf"No space left on device.*/{number}.residuals.pt"):
            killed_builds.build(built.checkpoint, root, SECOND)
    assert content(index_of(root)) == content(built.first)
    assert built.search(root, FIRST) == built.rankings[0]
    assert not (index_of(root).with_name("index.building") / f"{number}.metadata.json").exists()
    killed_builds.build(built.checkpoint, root, SECOND, overwrite="resume")
    whole = killed_builds.build(built.checkpoint, tmp_path / "whole", SECOND)
    assert content(index_of(root), records=False) == content(whole, records=False)


def test_the_records_are_those_of_the_library(built: Built, root: Path, library: Library) -> None:
    killed_builds.build(built.checkpoint, root, SECOND)
    ours = {name: (index_of(root) / name).read_text() for name in ("plan.json", "metadata.json")}
    with library():
        killed_builds.build(built.checkpoint, root, SECOND)
    for name, text in ours.items():
        assert text == (index_of(root) / name).read_text()


def test_there_is_time_to_think_again(
    built: Built, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def think_again(seconds: float) -> None:
        waits.append(seconds)
        if seconds == 20 and waits.count(20) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(indexer.time, "sleep", think_again)
    with pytest.raises(KeyboardInterrupt):
        killed_builds.build(built.checkpoint, root, SECOND, overwrite=True)
    assert (
        f"and then replace the {len(content(built.first))} files already at {index_of(root)}" in capsys.readouterr().out
    )
    assert content(index_of(root)) == content(built.first)
    killed_builds.build(built.checkpoint, root, SECOND, overwrite=True)
    assert waits.count(20) == 2
    assert content(index_of(root), records=False) == content(built.second, records=False)


def test_an_index_is_not_overwritten_unasked(built: Built, root: Path) -> None:
    with pytest.raises(AssertionError, match="indexes/index"):
        killed_builds.build(built.checkpoint, root, SECOND, overwrite=False)
    assert killed_builds.build(built.checkpoint, root, SECOND, overwrite="reuse") == index_of(root)
    killed_builds.build(built.checkpoint, root, FIRST, overwrite="resume")
    assert content(index_of(root), records=False) == content(built.first, records=False)


@pytest.mark.allow_fallback(reason="the library refuses it")
def test_what_the_library_refuses(built: Built, root: Path) -> None:
    with pytest.raises(AssertionError):
        killed_builds.build(built.checkpoint, root, SECOND, overwrite="yes")
    assert content(index_of(root)) == content(built.first)


def test_what_is_not_the_librarys_stays(built: Built, root: Path) -> None:
    folder = index_of(root)
    (folder / "names.json").write_text("mine")
    (folder / "7.codes.pt").write_text("of the library, once")
    (folder / "notes").mkdir()
    (folder / "notes" / "one.txt").write_text("mine too")
    (folder / "link").symlink_to("names.json")
    folder.chmod(0o750)
    killed_builds.build(built.checkpoint, root, SECOND)
    mine = {"names.json": b"mine", "notes/one.txt": b"mine too", "link": b"mine"}
    assert content(folder, records=False) == content(built.second, records=False) | mine
    assert (folder / "link").is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o750


def test_a_copy_that_fails(built: Built, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index_of(root) / "names.json").write_text("mine")

    def copy_half(source: str, target: str, **_: Any) -> None:
        Path(target).write_text("mi")
        raise OSError("no space left")

    with monkeypatch.context() as context:
        context.setattr(shutil, "copy2", copy_half)
        with pytest.raises(OSError, match="no space left"):
            killed_builds.build(built.checkpoint, root, SECOND)
    assert content(index_of(root)) == content(built.first) | {"names.json": b"mine"}
    assert beside(root) == ["index.building"]
    killed_builds.build(built.checkpoint, root, SECOND, overwrite="resume")
    assert content(index_of(root), records=False) == content(built.second, records=False) | {"names.json": b"mine"}


def test_an_index_behind_a_link(built: Built, root: Path) -> None:
    elsewhere = root / "elsewhere"
    index_of(root).rename(elsewhere)
    index_of(root).symlink_to(elsewhere, target_is_directory=True)
    killed_builds.build(built.checkpoint, root, SECOND)
    assert index_of(root).is_symlink()
    assert content(elsewhere, records=False) == content(built.second, records=False)


def test_an_index_with_a_path_of_its_own(built: Built, root: Path) -> None:
    folder = root / "own"
    shutil.copytree(built.first, folder)
    from colbert import Indexer

    settings = tiny_colbert.config(built.checkpoint, root, index_path=str(folder))
    made = Indexer(checkpoint=str(built.checkpoint), config=settings, verbose=0)
    made.index(name="index", collection=SECOND, overwrite="force_silent_overwrite")
    assert made.get_index() == str(folder)
    assert made.config.index_path == str(folder)
    for name in ("plan.json", "metadata.json"):
        assert json.loads((folder / name).read_text())["config"]["index_path"] == str(folder)


def test_a_system_that_cannot_exchange_folders(
    built: Built, root: Path, monkeypatch: pytest.MonkeyPatch, library: Library
) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    own = os.rename

    def rename(source: Any, target: Any) -> None:
        if str(source).endswith(staging.BUILDING):
            raise KeyboardInterrupt
        own(source, target)

    with monkeypatch.context() as context:
        context.setattr(os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            killed_builds.build(built.checkpoint, root, SECOND)
    assert not index_of(root).exists()
    assert built.search(root, FIRST) == built.rankings[0]  # put back
    assert index_of(root).exists()
    with library():
        assert_same(built.search(root, FIRST), built.rankings[0])
    killed_builds.build(built.checkpoint, root, SECOND, overwrite="resume")
    assert content(index_of(root), records=False) == content(built.second, records=False)
    assert beside(root) == []


def test_where_nothing_can_be_made_beside_it(
    built: Built, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(index_of(root)))
    killed_builds.build(built.checkpoint, root, SECOND)
    assert "is built in place: [Errno" in capsys.readouterr().out
    assert content(index_of(root), records=False) == content(built.second, records=False)
