"""Captured builds compared: sample, shuffle, encoder and its layers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from written_index import DIM, captured, centroids, hidden, made, nudged

from li_plugins.errors import BadInput
from li_plugins.index_diff.comparison import compare
from li_plugins.index_diff.layers import compare_layers


def states(report):
    return {finding.artifact: finding.state for finding in report.findings}


def test_the_same_build_twice(tmp_path):
    a, b = (captured(made(), tmp_path / name) for name in "ab")
    report = compare(a, b)
    assert set(states(report).values()) == {"identical"}
    assert {"sampled passages", "sample", "rng", "embeddings"} <= states(report).keys()
    assert report.notes == ("Environment: the same.",)


def test_another_shuffle_is_the_first_to_diverge(tmp_path):
    index, table = made(passages=40), centroids(seed=5)
    other = replace(index, centroids=table, codes=(index.rows.double() @ table.double().T).argmax(1).int())
    a = captured(index, tmp_path / "a")
    b = captured(other, tmp_path / "b", states={"torch": torch.zeros(5056)}, torch="2.15.0")
    report = compare(a, b)
    assert report.diagnosis.first == "rng"
    (cause,) = report.diagnosis.causes
    assert set(cause.explains) == {"centroids", "codes", "residuals", "ivf"}
    assert states(report)["embeddings"] == states(report)["sample"] == "identical"
    assert report.notes == ("Environment: torch 2.13.0 and 2.15.0",)


def test_python_s_random_state_does_not_shuffle(tmp_path):
    a = captured(made(), tmp_path / "a")
    report = compare(a, captured(made(), tmp_path / "b", states={"python": torch.ones(625)}))
    assert (states(report)["rng"], report.same) == ("close", True)


def test_an_encoder_that_drifts(tmp_path):
    index = made(passages=40)
    a = captured(index, tmp_path / "a")
    report = compare(a, captured(index, tmp_path / "b", rows=nudged(index.rows), sample=nudged(index.rows)))
    assert states(report)["sample"] == states(report)["embeddings"] == "close"
    figures = report.finding("embeddings").figures
    assert figures["different"] == pytest.approx(1 / DIM, rel=0.05)
    assert 0.999 < figures["least_cosine"] < 1
    far = index.rows.roll(1, 1)
    report = compare(a, captured(index, tmp_path / "c", rows=far))
    assert [cause.artifact for cause in report.diagnosis.causes] == ["embeddings"]


def test_a_sample_that_drifts_is_what_to_look_at_when_centroids_differ(tmp_path):
    index, table = made(passages=40), centroids(seed=5)
    other = replace(index, centroids=table, codes=(index.rows.double() @ table.double().T).argmax(1).int())
    a = captured(index, tmp_path / "a")
    for sample, says in ((index.rows, "sample and shuffle are the same"), (nudged(index.rows), "inject A's `sample`")):
        b = captured(other, tmp_path / says.replace(" ", "-"), sample=sample)
        diagnosis = compare(a, b).diagnosis
        assert diagnosis.first == "centroids"
        assert says in diagnosis.causes[0].hint


def test_a_sample_of_other_passages(tmp_path):
    index = made(passages=40)
    a = captured(index, tmp_path / "a")
    b = captured(index, tmp_path / "b", sample=index.rows[:50], passages=torch.arange(5))
    report = compare(a, b)
    assert report.diagnosis.first == "sampled passages"
    assert report.diagnosis.causes[0].explains == ("sample",)
    assert "40 and 5 passages, 5 in both" in report.finding("sampled passages").text


def test_ties_are_judged_on_what_was_captured(tmp_path):
    """A code that the decoded embeddings would call a tie, and the embeddings themselves do not."""
    index = made(1, passages=60)
    table = index.centroids.clone()
    direction = torch.zeros(DIM)
    direction[0] = 1
    table[1] = torch.nn.functional.normalize(table[0].float() + 0.02 * direction, dim=0)
    index = replace(index, centroids=table)
    index = index.with_codes((index.rows.double() @ table.double().T).argmax(1).int())
    gaps = (index.rows.double() * (table[0] - table[1]).double()).sum(1).abs()
    token = int(torch.where(index.codes == 0, gaps, torch.tensor(0.0)).argmax())
    assert 0.002 < gaps[token] < 0.02
    flipped = index.codes.clone()
    flipped[token] = 1
    a, b = index.write(tmp_path / "a"), index.with_codes(flipped).write(tmp_path / "b")
    assert compare(a, b).finding("codes").figures["ties"] == 1
    a, b = captured(index, tmp_path / "c"), captured(index.with_codes(flipped), tmp_path / "d")
    figures = compare(a, b).finding("codes").figures
    assert figures["ties"] == 0
    assert figures["greatest_loss"] == pytest.approx(float(gaps[token]), abs=1e-4)


def test_one_capture_alone_is_told_of(tmp_path):
    report = compare(captured(made(), tmp_path / "a"), made().write(tmp_path / "b"))
    assert report.notes[0].startswith("Only A was captured")
    assert "sample" not in states(report)


@pytest.mark.parametrize("name", ["0.embeddings.pt", "sample.0.pt", "rng.pt", "environment.json"])
def test_a_file_of_a_capture_that_is_broken_is_named(tmp_path, name):
    a, b = (captured(made(), tmp_path / folder) for folder in "ab")
    path = b / "capture" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput) as raised:
        compare(a, b)
    assert str(path) in str(raised.value)
    path.unlink()
    with pytest.raises(BadInput) as raised:
        compare(a, b)
    assert str(path) in str(raised.value)


# Layers


def test_the_drift_of_each_layer(tmp_path):
    a = captured(made(), tmp_path / "a")
    b = captured(made(), tmp_path / "b", layers=hidden(noise=0.5))
    report = compare_layers(str(a), str(b))
    first, second, third = report.layers
    assert (first.max_abs, first.least_cosine, third.relative) == (0, pytest.approx(1), 0)
    # the noise in the padding, nine times as much, is not counted
    assert second.max_abs == pytest.approx(0.5)
    assert second.mean_abs == pytest.approx(0.5 / (7 * 8))
    one, other = hidden()["layers"]["layer 0"], hidden(0.5)["layers"]["layer 0"]
    cosine = torch.nn.functional.cosine_similarity(one[1, 2], other[1, 2], dim=0)
    assert second.least_cosine == pytest.approx(float(cosine))
    scale = one[hidden()["attention_mask"].bool()].square().mean().sqrt()
    assert second.relative == pytest.approx(0.5 / float(scale))
    assert report.first is second
    assert not report.same
    assert compare_layers(str(a), str(a)).same
    assert compare_layers(str(a), str(b), tolerance=10).same


def test_other_weights_are_told_first(tmp_path):
    other = hidden()
    other["weights"] = {"w": "cc", "v": "bb", "u": "dd"}
    report = compare_layers(str(captured(made(), tmp_path / "a")), str(captured(made(), tmp_path / "b", layers=other)))
    assert report.other_weights == ("w", "u")
    assert not report.same
    assert "The weights are not the same: w, u." in report.verdict()[0]


def test_layers_of_other_texts_cannot_be_compared(tmp_path):
    other = hidden()
    other["input_ids"] = other["input_ids"] + 1
    a, b = captured(made(), tmp_path / "a"), captured(made(), tmp_path / "b", layers=other)
    with pytest.raises(BadInput, match="the same texts"):
        compare_layers(str(a), str(b))
    del other["layers"]["layer 0"]
    c = captured(made(), tmp_path / "c", layers={**other, "input_ids": hidden()["input_ids"]})
    with pytest.raises(BadInput, match="the same layers"):
        compare_layers(str(a), str(c))
    with pytest.raises(BadInput, match="no capture"):
        compare_layers(str(a), str(made().write(tmp_path / "d")))


def test_layers_as_a_command(tmp_path, capsys):
    from li_plugins.__main__ import main

    a, b = captured(made(), tmp_path / "a"), captured(made(), tmp_path / "b", layers=hidden(noise=0.5))

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["index-diff", "layers", *map(str, arguments)])
        return (exit_.value.code, *capsys.readouterr())

    code, out, _ = call(a, b)
    assert code == 1
    assert "Drift begins in layer 0." in out
    code, out, _ = call(a, a, "--json")
    assert code == 0
    assert [layer["max_abs"] for layer in json.loads(out)["layers"]] == [0, 0, 0]
    assert call(a, tmp_path)[0] == 2


def test_a_plot_without_matplotlib_says_what_to_do(tmp_path, monkeypatch):
    from li_plugins.index_diff.plot import save_plot

    a = str(captured(made(), tmp_path / "a"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BadInput, match="pip install matplotlib"):
        save_plot(compare_layers(a, a), tmp_path / "plot.png")


def drawn(report):
    """Return the points of each line of the plot, and the heights of the one across."""
    from li_plugins.index_diff.plot import draw

    (axes,) = draw(report).axes
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == [layer.name for layer in report.layers]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    points = {name: [tuple(point) for point in line.get_xydata().tolist()] for name, line in lines.items()}
    return {**points, "tolerance": list(lines["tolerance"].get_ydata())}


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    from li_plugins.index_diff.plot import save_plot

    a, b = captured(made(), tmp_path / "a"), captured(made(), tmp_path / "b", layers=hidden(noise=0.5))
    for other in (a, b):
        save_plot(compare_layers(str(a), str(other)), tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    same, drifts = (drawn(compare_layers(str(a), str(other), tolerance=0.01)) for other in (a, b))
    assert same == {"greatest": [], "mean": [], "tolerance": [0.01, 0.01]}
    mask = hidden()["attention_mask"].bool()
    scale = float(hidden()["layers"]["layer 0"][mask].square().mean().sqrt())
    # what does not drift is no point
    assert drifts == {
        "greatest": [(1, pytest.approx(0.5 / scale))],
        "mean": [(1, pytest.approx(0.5 / (7 * 8) / scale))],
        "tolerance": [0.01, 0.01],
    }
    with pytest.raises(BadInput, match="--plot writes"):
        save_plot(compare_layers(str(a), str(b)), tmp_path / "nowhere" / "plot.png")
