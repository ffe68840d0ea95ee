"""Index folders with files that are missing, cut off, foreign or not of one index."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from written_index import CENTROIDS, DIM, centroids, damage, made, states

from li_plugins.errors import BadInput
from li_plugins.index_diff.comparison import compare
from li_plugins.index_diff.finding import Tolerance


def test_a_missing_file_has_a_cause_of_its_own(compared, tmp_path):
    index, table = made(), centroids(seed=9)
    compared(index, coded := replace(index, centroids=table))
    assert not torch.equal(coded.centroids, index.centroids)
    (tmp_path / "b" / "buckets.pt").unlink()
    diagnosis = compare(tmp_path / "a", tmp_path / "b").diagnosis
    assert [(cause.artifact, cause.explains) for cause in diagnosis.causes] == [("centroids", ()), ("buckets", ())]


@pytest.mark.parametrize("name", ["0.codes.pt", "0.residuals.pt", "centroids.pt", "buckets.pt", "ivf.pid.pt",
                                  "avg_residual.pt", "doclens.1.json", "1.metadata.json",
                                  "metadata.json", "plan.json"])  # fmt: skip
def test_a_truncated_file_is_named(compared, tmp_path, name):
    compared(made(), made())
    path = tmp_path / "b" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match="truncated") as raised:
        compare(tmp_path / "a", tmp_path / "b")
    assert str(path) in str(raised.value)


OF_TORCH = ["0.codes.pt", "1.residuals.pt", "centroids.pt", "buckets.pt", "ivf.pid.pt", "avg_residual.pt"]


@pytest.mark.parametrize("name", OF_TORCH)
def test_a_file_that_is_damaged_inside_is_named(compared, tmp_path, name):
    compared(made(), made())
    path = tmp_path / "b" / name
    damage(path)
    with pytest.raises(BadInput, match=r"another checksum of '.*/data/0' in it; it is damaged") as raised:
        compare(tmp_path / "a", tmp_path / "b")
    assert str(path) in str(raised.value)


def test_a_file_whose_headers_are_damaged_is_named(compared, tmp_path):
    compared(made(), made())
    path = tmp_path / "b" / "centroids.pt"
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] ^= 1  # of the flags: that a file is encrypted
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"RuntimeError: .* it is damaged") as raised:
        compare(tmp_path / "a", tmp_path / "b")
    assert str(path) in str(raised.value)


def test_files_without_checksums_are_read(compared, tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch writes checksums always")
    torch.serialization.set_crc32_options(False)
    try:
        assert compared(made(), made()).same
    finally:
        torch.serialization.set_crc32_options(True)


MADE_IN = {
    "0.codes.pt": "codes",
    "centroids.pt": "centroids",
    "buckets.pt": "buckets",
    "avg_residual.pt": "avg_residual",
    "ivf.pid.pt": "ivf",
    "plan.json": "plan",
    "metadata.json": "metadata",
    "doclens.0.json": "doclens",
    "0.metadata.json": "metadata",
}


@pytest.mark.parametrize("name", MADE_IN)
def test_a_missing_file_is_named(compared, tmp_path, name):
    compared(made(), made())
    (tmp_path / "b" / name).unlink()
    report = compare(tmp_path / "a", tmp_path / "b")
    assert not report.same
    assert f"B lacks {name}" in report.finding("files").text
    found = states(report)
    absent = {artifact for artifact, state in found.items() if state == "missing"} - {"files"}
    assert absent == {MADE_IN[name]}
    if name not in ("0.codes.pt", "centroids.pt", "buckets.pt", "doclens.0.json"):
        assert found["codes"] == "identical"
    elif name != "centroids.pt":
        assert found["centroids"] == "identical"
    assert "not copied whole" in report.diagnosis.causes[0].hint


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("0.codes.pt", torch.zeros(3, 3), "it holds int32 codes"),
        ("0.codes.pt", torch.zeros(2, dtype=torch.int32), "as doclens.0.json says"),
        ("centroids.pt", torch.zeros(3, dtype=torch.int32), "it holds a matrix of float16"),
        ("buckets.pt", torch.zeros(3), "it holds cutoffs and weights"),
        ("0.residuals.pt", torch.zeros(3, 8, dtype=torch.uint8), "it has the shape"),
        ("avg_residual.pt", torch.zeros(3), "it holds one number"),
        ("ivf.pid.pt", (torch.zeros(3, dtype=torch.int32), torch.ones(5, dtype=torch.int64)), "it has a cell for each"),
    ],
)
def test_a_file_of_another_content_is_named(compared, tmp_path, name, content, says):
    compared(made(), made())
    torch.save(content, tmp_path / "a" / name)
    with pytest.raises(BadInput) as raised:
        compare(tmp_path / "a", tmp_path / "b")
    assert str(tmp_path / "a" / name) in str(raised.value)
    assert says in str(raised.value)


def test_codes_beyond_the_centroids(compared, tmp_path):
    compared(made(), made())
    codes = torch.load(tmp_path / "b" / "1.codes.pt")
    codes[0] = CENTROIDS
    torch.save(codes, tmp_path / "b" / "1.codes.pt")
    with pytest.raises(BadInput, match=r"1\.codes\.pt: codes lie below 12"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_pickle_runs_no_code(compared, tmp_path):
    import pickle

    compared(made(), made())

    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "b" / "centroids.pt").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(BadInput, match=r"centroids\.pt"):
        compare(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_no_index(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    index = made().write(tmp_path / "a")
    for folder, says in ((tmp_path, "neither metadata.json"), (tmp_path / "nowhere", "no folder of this name")):
        with pytest.raises(BadInput, match=says):
            compare(index, folder)


def test_strangers_in_a_folder_do_not_count(compared, tmp_path):
    compared(made(), made())
    (tmp_path / "b" / "notes.txt").write_text("mine")
    report = compare(tmp_path / "a", tmp_path / "b")
    assert report.same
    assert "not of an index, in B: notes.txt" in report.finding("files").text


def test_queries_that_are_none(compared, tmp_path):
    index = made().write(tmp_path / "a")
    for name, content, says in [
        ("flat.pt", torch.zeros(3, DIM), r"\[Q, Lq, d\]"),
        ("wide.pt", torch.zeros(3, 4, DIM + 1), "32 dimensions"),
        ("nowhere.pt", None, "no such file"),
        ("damaged.pt", torch.ones(1, 4, DIM), "it is damaged"),
    ]:
        if content is not None:
            torch.save(content, tmp_path / name)
        if name == "damaged.pt":
            damage(tmp_path / name)
        with pytest.raises(BadInput, match=says):
            compare(index, index, queries=tmp_path / name)
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="an array of numpy"):
        compare(index, index, queries=tmp_path / "broken.npy")


def test_the_tolerance_is_multiplied(compared, tmp_path):
    index = made()
    compared(index, replace(index, centroids=index.centroids + 0.002))
    paths = tmp_path / "a", tmp_path / "b"
    assert states(compare(*paths))["centroids"] == "differs"
    assert states(compare(*paths, tolerance=Tolerance(scale=100)))["centroids"] == "close"
