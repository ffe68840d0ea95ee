"""Indexes with a file that is cut off or missing: the error names it and says what to do, and doing it helps."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed_builds
import pytest
import tiny_colbert
import torch
from colbert.infra import ColBERTConfig
from colbert.search.index_loader import IndexLoader
from killed_builds import FIRST
from li_plugins_colbert.damage import DamagedIndex, damage
from test_colbert_index import ranking
from test_colbert_rebuild import content, index_of

import li_plugins
from li_plugins.testing.parity import call_unpatched

ANEW = ("centroids.pt", "buckets.pt", "avg_residual.pt")
FROM_CHUNKS = ("metadata.json", "ivf.pid.pt")
OF_CHUNKS = ("0.codes.pt", "0.residuals.pt", "doclens.0.json", "1.codes.pt", "1.residuals.pt", "doclens.1.json")

HARMS: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "nearly whole": lambda file: os.truncate(file, file.stat().st_size - 3),
    "empty": lambda file: os.truncate(file, 0),
    "missing": Path.unlink,
}


def overwritten(file: Path) -> None:
    """Change some bytes of the largest part of a file, or a number in a list."""
    data = bytearray(file.read_bytes())
    if file.suffix == ".json":
        file.write_text(re.sub(r"\d+", lambda found: str(int(found[0]) + 1), data.decode(), count=1))
        return
    with zipfile.ZipFile(file) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
        start = data.index(archive.read(part))
    data[start : start + 4] = bytes(255 - byte for byte in data[start : start + 4])
    file.write_bytes(data)


def shorter(file: Path) -> None:
    """Leave out the last entry of a file."""
    if file.suffix == ".json":
        file.write_text(json.dumps(json.loads(file.read_text())[:-1]))
    else:
        torch.save(torch.load(file)[:-1].clone(), file)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    li_plugins.enable("colbert", strict=True)  # it is made before what enables for each test
    return killed_builds.build(checkpoint, tmp_path_factory.mktemp("whole"), FIRST)


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, index_of(tmp_path))
    return tmp_path


def remedy(checkpoint: Path, root: Path, error: DamagedIndex) -> None:
    """Do what an error says."""
    if "remove" in error.remedy:
        names = error.remedy.partition("remove ")[2].partition(" and build")[0].split(", ")
        assert len(names) == 4
        for name in names:
            (index_of(root) / name).unlink(missing_ok=True)
    overwrite = "resume" if "overwrite='resume'" in error.remedy else "force_silent_overwrite"
    assert overwrite == "resume" or "overwrite=True" in error.remedy
    killed_builds.build(checkpoint, root, FIRST, overwrite=overwrite)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", [*ANEW, *FROM_CHUNKS, *OF_CHUNKS])
def test_the_file_is_named_and_the_remedy_helps(
    checkpoint: Path, whole: Path, root: Path, name: str, harm: str
) -> None:
    HARMS[harm](index_of(root) / name)
    with pytest.raises(DamagedIndex) as caught:
        tiny_colbert.searcher(checkpoint, root, FIRST)
    assert caught.value.file == str(index_of(root) / name)
    assert str(caught.value).startswith(f"{index_of(root) / name}: it ")
    assert ("it is missing" if harm == "missing" else "it cannot be read, ") in caught.value.found
    assert caught.value.__cause__ is not None
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - the library's own, whatever it is
        call_unpatched(IndexLoader, str(index_of(root)), use_gpu=False)
    assert not isinstance(theirs.value, DamagedIndex)
    assert "overwrite" not in str(theirs.value)
    remedy(checkpoint, root, caught.value)
    assert content(index_of(root), records=False) == content(whole, records=False)
    found = ranking(tiny_colbert.searcher(checkpoint, root, FIRST), k=1)
    assert [pids for pids, _ in found] == [[pid] for pid in range(0, 60, 7)]


@pytest.mark.parametrize(
    ("name", "harm"),
    [(name, overwritten) for name in (*ANEW, "ivf.pid.pt", *OF_CHUNKS)] + [(name, shorter) for name in OF_CHUNKS],
)
def test_what_can_be_read_but_is_not_what_was_written(
    checkpoint: Path, whole: Path, root: Path, name: str, harm: Callable[[Path], None]
) -> None:
    """The library searches most of these, and finds other passages."""
    harm(index_of(root) / name)
    with pytest.raises(DamagedIndex) as caught:
        tiny_colbert.searcher(checkpoint, root, FIRST)
    assert caught.value.file == str(index_of(root) / name)
    remedy(checkpoint, root, caught.value)
    assert content(index_of(root), records=False) == content(whole, records=False)
    tiny_colbert.searcher(checkpoint, root, FIRST)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("doclens.0.json", '{"a": 1}', "it holds no list of lengths"),
        ("doclens.0.json", '["a"]', "it holds no list of lengths"),
        ("metadata.json", "{}", "it tells of None chunks"),
        ("metadata.json", '{"num_chunks": 2, "num_embeddings": 7}', "it tells of 7 embeddings, the chunks have "),
    ],
)
def test_records_that_cannot_be_right(root: Path, name: str, text: str, found: str) -> None:
    (index_of(root) / name).write_text(text)
    with pytest.raises(DamagedIndex, match=f"/{name}: {found}"):
        IndexLoader(str(index_of(root)), use_gpu=False)


def test_files_without_checksums_are_searched(root: Path) -> None:
    """``torch.serialization.set_crc32_options(False)`` leaves zeros in their place."""
    without = getattr(torch.serialization, "set_crc32_options", None)
    if without is None:
        pytest.skip("this torch always writes checksums")
    codes = torch.load(index_of(root) / "0.codes.pt")
    without(False)
    try:
        torch.save(codes, index_of(root) / "0.codes.pt")
    finally:
        without(True)
    assert zipfile.ZipFile(index_of(root) / "0.codes.pt").testzip() is not None
    IndexLoader(str(index_of(root)), use_gpu=False)


def test_an_index_that_the_library_updated_is_searched(checkpoint: Path, root: Path) -> None:
    """It then tells of more embeddings than there are."""
    from colbert.index_updater import IndexUpdater

    searcher = tiny_colbert.searcher(checkpoint, root, FIRST)
    updater = IndexUpdater(tiny_colbert.config(checkpoint, root), searcher, str(checkpoint))
    updater.remove([3, 17])
    updater.persist_to_disk()
    stored = IndexLoader(str(index_of(root)), use_gpu=False)
    assert stored.num_embeddings > int(stored.doclens.sum())
    assert [pids for pids, _ in ranking(tiny_colbert.searcher(checkpoint, root, FIRST), k=1)][1] == [7]


def test_what_stays_in_its_files_is_not_read(root: Path) -> None:
    for name in ("0.codes.pt", "centroids.pt"):
        overwritten(index_of(root) / name)
        found = damage(str(index_of(root)), is_loaded=True, is_mapped=True)
        assert (found is None) == (name == "0.codes.pt")


@pytest.mark.parametrize("harm", ["cut off", "empty"])
def test_metadata_and_plan(checkpoint: Path, root: Path, harm: str) -> None:
    HARMS[harm](index_of(root) / "metadata.json")
    assert ColBERTConfig.load_from_index(str(index_of(root))).dim == 64  # as in the library, from the plan
    HARMS[harm](index_of(root) / "plan.json")
    with pytest.raises(DamagedIndex, match=r"/metadata.json: it cannot be read, .*overwrite=True"):
        ColBERTConfig.load_from_index(str(index_of(root)))
    (index_of(root) / "metadata.json").unlink()
    with pytest.raises(DamagedIndex, match=r"/plan.json: it cannot be read"):
        tiny_colbert.searcher(checkpoint, root, FIRST)


def test_metadata_that_is_no_record(checkpoint: Path, root: Path) -> None:
    (index_of(root) / "metadata.json").write_text("[1, 2]")
    with pytest.raises(
        DamagedIndex, match=r"/metadata.json: it holds no record but list; .*overwrite='resume'"
    ) as found:
        tiny_colbert.searcher(checkpoint, root, FIRST)
    remedy(checkpoint, root, found.value)
    tiny_colbert.searcher(checkpoint, root, FIRST)


def test_no_index(checkpoint: Path, tmp_path: Path) -> None:
    """What is not there at all has the library's error."""

    def outcome(call: Callable[[], Any]) -> tuple[type, str]:
        with pytest.raises(FileNotFoundError) as caught:
            call()
        return type(caught.value), str(caught.value)

    folder = str(tmp_path / "nothing")
    for call in (lambda: ColBERTConfig.load_from_index(folder), lambda: IndexLoader(folder, use_gpu=False)):
        assert outcome(call) == call_unpatched(outcome, call)


def test_an_error_that_no_file_is_the_cause_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(IndexLoader, "_load_doclens", fail)
    with pytest.raises(RuntimeError, match="something else"):
        IndexLoader(str(index_of(root)), use_gpu=False)


@pytest.mark.parametrize("name", ["1.metadata.json", "1.codes.pt"])
def test_a_build_that_is_resumed_names_what_is_cut_off(checkpoint: Path, whole: Path, root: Path, name: str) -> None:
    HARMS["cut off"](index_of(root) / name)
    with pytest.raises(DamagedIndex, match=f"/{name}: it cannot be read") as caught:
        killed_builds.build(checkpoint, root, FIRST, overwrite="resume")
    remedy(checkpoint, root, caught.value)
    assert content(index_of(root), records=False) == content(whole, records=False)


def test_the_files_of_an_older_release(root: Path, whole: Path) -> None:
    """An index with its first kind of inverted file, of embeddings, which is converted when it is loaded."""
    codes = torch.cat([torch.load(whole / f"{chunk}.codes.pt") for chunk in range(2)])
    count = len(torch.load(whole / "centroids.pt"))
    ivf, lengths = codes.argsort(stable=True), torch.bincount(codes, minlength=count)
    (index_of(root) / "ivf.pid.pt").unlink()
    torch.save((ivf, lengths), index_of(root) / "ivf.pt")
    os.truncate(index_of(root) / "ivf.pt", 100)
    with pytest.raises(DamagedIndex, match=r"/ivf.pt: it cannot be read"):
        IndexLoader(str(index_of(root)), use_gpu=False)
    torch.save((ivf, lengths), index_of(root) / "ivf.pt")
    IndexLoader(str(index_of(root)), use_gpu=False)
    assert (index_of(root) / "ivf.pid.pt").read_bytes() == (whole / "ivf.pid.pt").read_bytes()
