"""Captures that are not of the index in whose folder they lie, or not what was captured."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from written_index import captured, damage, hidden, made, states

from li_plugins.errors import BadInput
from li_plugins.index_diff.capture import CENTROIDS, Capture, ForeignCapture
from li_plugins.index_diff.comparison import compare
from li_plugins.index_diff.layers import compare_layers
from li_plugins.index_diff.recorder import Recording
from li_plugins.index_diff.replay import replay


def of_another_build(folder, index, **changes):
    """Write an index and, beside it, what was captured of another one."""
    capture = captured(index, folder, **changes) / "capture"
    kept = capture.rename(folder.with_name("kept"))
    shutil.rmtree(folder)
    far = replace(index, rows=index.rows.roll(1, 1))
    replace(far, codes=(far.rows.double() @ index.centroids.double().T).argmax(1).int()).write(folder)
    kept.rename(capture)
    return folder


def test_a_capture_of_another_build_is_left_out(tmp_path, capsys):
    """Only the encoder is another one, which what was captured denies."""
    from li_plugins.__main__ import main

    index = made(passages=40)
    a, b = captured(index, tmp_path / "a"), of_another_build(tmp_path / "b", index)
    report = compare(a, b)
    found = report.findings[0]
    assert (found.artifact, found.state) == ("capture", "left out")
    assert "that of B is not used" in found.text
    assert f"{b / 'capture'} is a capture of the index that it lies in; found 0.codes.pt, 0.residuals.pt" in found.text
    assert "delete it, or build the index again" in found.text
    assert not {"sampled passages", "sample", "rng", "embeddings"} & states(report).keys()
    assert report.diagnosis.first == "codes"
    assert "the encoder" in report.diagnosis.causes[0].hint
    assert report.notes[0].startswith("A capture is not of its index")
    with pytest.raises(SystemExit) as exit_:
        main(["index-diff", "diff", str(a), str(b)])
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    assert re.search("^capture +left out +that of B is not used", out, re.MULTILINE)
    assert "A capture is not of its index" in out
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["figures"]["foreign"].keys() == {"B"}
    # without it the other artifacts are as they were
    shutil.rmtree(b / "capture")
    assert compare(a, b).findings == report.findings[1:]


def test_a_capture_of_another_build_is_refused_where_it_is_needed(tmp_path):
    index = made(passages=40)
    a, b = captured(index, tmp_path / "a"), of_another_build(tmp_path / "b", index)
    for call in (
        lambda: compare_layers(str(a), str(b)),
        lambda: replay(a, b, ["centroids"], tmp_path / "c"),
        lambda: replay(b, a, ["embeddings"], tmp_path / "c"),
        lambda: Recording(injected={"rng": str(b)}).check(),
    ):
        with pytest.raises(ForeignCapture, match="of another build, or changed since"):
            call()


@pytest.mark.parametrize("name", ["centroids.pt", "buckets.pt", "avg_residual.pt", "1.codes.pt", "0.residuals.pt",
                                  "doclens.2.json"])  # fmt: skip
def test_a_capture_is_tied_to_what_was_made_of_it(tmp_path, name):
    index = captured(made(), tmp_path / "a")
    Capture(index)
    (index / name).write_bytes((index / name).read_bytes() + b" ")
    with pytest.raises(ForeignCapture, match=f"found {name} of another build, or changed since"):
        Capture(index)
    (index / name).unlink()
    with pytest.raises(ForeignCapture, match=f"found no {name}"):
        Capture(index)


def test_a_capture_is_not_tied_to_paths_and_what_follows_from_codes(tmp_path):
    index = captured(made(), tmp_path / "a").rename(tmp_path / "b")
    for name in ("metadata.json", "plan.json", "0.metadata.json", "ivf.pid.pt"):
        (index / name).write_bytes(b" ")
    assert CENTROIDS in Capture(index).files


def test_a_manifest_that_names_no_index(tmp_path):
    index = captured(made(), tmp_path / "a")
    manifest = index / "capture/manifest.json"
    manifest.write_text(json.dumps({"files": json.loads(manifest.read_text())["files"]}))
    assert "does not say of which index" in compare(index, index).findings[0].text
    manifest.write_text("{}")
    with pytest.raises(BadInput, match="says what a capture holds"):
        Capture(index)


@pytest.mark.parametrize(
    "name", ["0.embeddings.pt", "sample.0.pt", "rng.pt", "sampled_passages.pt", "environment.json"]
)
def test_a_file_of_a_capture_that_was_changed_is_named(tmp_path, name):
    a, b = (captured(made(), tmp_path / folder) for folder in "ab")
    path = b / "capture" / name
    if name == "environment.json":
        path.write_text(path.read_text().replace("2.13.0", "2.13.1"))
    else:
        damage(path)
    with pytest.raises(BadInput, match="is what was captured; found another sha256") as raised:
        compare(a, b)
    assert str(path) in str(raised.value)


def test_hidden_states_that_were_changed(tmp_path):
    a, b = (captured(made(), tmp_path / folder) for folder in "ab")
    torch.save(hidden(0.5), b / "capture/layers.pt")
    with pytest.raises(BadInput, match=r"layers\.pt is what was captured; found another sha256"):
        compare_layers(str(a), str(b))
    manifest = b / "capture/manifest.json"
    manifest.write_text(manifest.read_text().replace("layers.pt", "other.pt"))
    with pytest.raises(BadInput, match="found a file that the manifest does not name"):
        compare_layers(str(a), str(b))
