"""Captured builds compared: sample, shuffle, encoder and its layers; and how a program's build is recorded."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from textwrap import dedent

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


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    from li_plugins.index_diff.plot import save_plot

    a, b = captured(made(), tmp_path / "a"), captured(made(), tmp_path / "b", layers=hidden(noise=0.5))
    for other in (a, b):
        save_plot(compare_layers(str(a), str(other)), tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match="--plot writes"):
        save_plot(compare_layers(str(a), str(b)), tmp_path / "nowhere" / "plot.png")


# Recording, of a library that has the methods and files of colbert-ai's indexer, and little behind them

INDEXER = """
    import json, os, random
    from types import SimpleNamespace

    import torch
    from colbert.infra.launcher import Launcher
    from colbert.utils import distributed

    class IndexSaver:
        def __init__(self, config):
            self.config = config
        def save_chunk(self, chunk_idx, offset, embs, doclens):
            torch.save(embs.sum(), os.path.join(self.config.index_path_, f"{chunk_idx}.sum.pt"))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = torch.nn.Module()
            self.bert.embeddings = torch.nn.Embedding(9, 4)
            self.bert.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])
            self.bert.forward = self.encode
            self.linear = torch.nn.Linear(4, 3)
            self.model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="eager"))
        def encode(self, input_ids, attention_mask=None):
            rows = self.bert.embeddings(input_ids)
            for layer in self.bert.layers:
                rows = layer(rows)
            return (rows,)

    class CollectionIndexer:
        def __init__(self, config):
            self.config, self.rank, self.checkpoint = config, 0, Model()
            self.saver = IndexSaver(config)
        def run(self, shared_lists):
            with torch.inference_mode():
                avg = self._sample_embeddings(self._sample_pids())
                sample, heldout = self._concatenate_and_split_sample()
                centroids = self._train_kmeans(sample, shared_lists)
                self.buckets = self._compute_avg_residual(centroids, heldout)
                torch.save(centroids, os.path.join(self.config.index_path_, "used.pt"))
                self.saver.save_chunk(0, 0, self.embs.float(), [6])
                self.finalize()
        def _sample_pids(self):
            return set(random.sample(range(9), 3))
        def _sample_embeddings(self, pids):
            hidden = self.checkpoint.bert(torch.arange(6).view(2, 3), attention_mask=torch.ones(2, 3))[0]
            self.embs = self.checkpoint.linear(hidden).view(6, 3)
            torch.save(self.embs.half(), os.path.join(self.config.index_path_, "sample.0.pt"))
        def _concatenate_and_split_sample(self):
            path = os.path.join(self.config.index_path_, "sample.0.pt")
            sample = torch.load(path)
            os.remove(path)
            sample = sample[torch.randperm(6)]
            return sample[:5], sample[5:]
        def _train_kmeans(self, sample, shared_lists):
            return sample[:2].float()
        def _compute_avg_residual(self, centroids, heldout):
            return torch.zeros(3), torch.zeros(4), torch.tensor(0.5)
        def finalize(self):
            pass

    def encode(config, *arguments):
        CollectionIndexer(config).run([])

    def build(folder, seed):
        os.makedirs(folder)
        torch.manual_seed(seed)
        Launcher(encode).launch(SimpleNamespace(index_path_=folder))
"""

LAUNCHER = """
    import multiprocessing

    class Launcher:
        def __init__(self, callee, run_config=None):
            self.callee = callee
        def launch(self, config, *arguments):
            import os
            if "CHILD" not in os.environ:
                return self.callee(config, *arguments)
            child = multiprocessing.get_context("spawn").Process(target=self.callee, args=(config, *arguments))
            child.start()
            child.join()
            assert child.exitcode == 0
"""

SCRIPT = """
    import sys

    if __name__ == "__main__":
        from colbert.indexing.collection_indexer import build

        build(sys.argv[1], int(sys.argv[2]))
"""


@pytest.fixture
def recorded(site):
    """Return a function that runs ``capture`` over a program which builds an index: the process, and the folder."""
    site.module("colbert.indexing.collection_indexer", INDEXER)
    site.module("colbert.infra.launcher", LAUNCHER)
    site.module("colbert.utils.distributed", "def barrier(rank):\n    pass\n")
    script = site.path / "index.py"
    script.write_text(dedent(SCRIPT))

    def run(name, seed, *options, **environment):
        folder = site.path / "indexes" / name
        done = site.run("-m", "li_plugins", "index-diff", "capture", *options, str(script), str(folder), str(seed),
                        **environment)  # fmt: skip
        return done, folder

    return run


def test_a_build_is_recorded_and_takes_what_is_injected(recorded):
    done, first = recorded("one", 3, "--texts", "1", CHILD="1")
    assert done.returncode == 0, done.stderr
    capture = first / "capture"
    manifest = json.loads((capture / "manifest.json").read_text())["files"]
    assert manifest.keys() == {
        "sampled_passages.pt", "sample.0.pt", "rng.pt", "centroids.pt", "0.embeddings.pt", "layers.pt"
    }  # fmt: skip
    assert manifest["sample.0.pt"]["shape"] == [6, 3]
    environment = json.loads((capture / "environment.json").read_text())
    assert (environment["torch"], environment["attention"]) == (torch.__version__, "eager")
    layers = torch.load(capture / "layers.pt")
    assert list(layers["layers"]) == ["embeddings", "layer 0", "layer 1", "projection"]
    assert layers["layers"]["layer 1"].shape == (1, 3, 4)
    assert torch.equal(layers["input_ids"], torch.arange(3)[None])
    # the random state is that before the shuffle
    torch.set_rng_state(torch.load(capture / "rng.pt")["torch"])
    shuffled = torch.load(capture / "sample.0.pt")[torch.randperm(6)]
    assert torch.equal(torch.load(first / "used.pt"), shuffled[:2].float())

    # another encoder and another shuffle, in this process; what is injected takes the place of its own
    done, second = recorded("two", 4, f"--inject=embeddings={first}", f"--inject=centroids={first}")
    assert done.returncode == 0, done.stderr
    assert not torch.equal(torch.load(second / "capture/sample.0.pt"), torch.load(capture / "sample.0.pt"))
    assert torch.equal(torch.load(second / "used.pt"), torch.load(first / "used.pt"))
    assert torch.equal(torch.load(second / "0.sum.pt"), torch.load(capture / "0.embeddings.pt").float().sum())
    about = json.loads((second / "capture/environment.json").read_text())
    assert about["injected"] == {"embeddings": str(first), "centroids": str(first)}
    _, third = recorded("three", 4, f"--inject=rng={first}", f"--inject=sample={first}")
    assert torch.equal(torch.load(third / "used.pt"), torch.load(first / "used.pt"))

    torch.save(torch.zeros(5, 3), capture / "centroids.pt")
    done, _ = recorded("four", 3, "--inject", f"centroids={first}")
    assert done.returncode == 1
    assert "injected centroids have the shape of the build's own, [2, 3]; found [5, 3]" in done.stderr


def test_what_cannot_be_recorded_is_refused_before_a_program_runs(tmp_path, capsys):
    from li_plugins.__main__ import main

    script = tmp_path / "index.py"
    script.write_text("raise AssertionError('ran')")
    plain = made().write(tmp_path / "plain")
    for arguments, says in [
        (["--inject", "codes=x", script], "inject one of sampled-passages, sample"),
        (["--inject", "centroids", script], "is not NAME=INDEX"),
        (["--inject", f"rng={plain}", script], "no capture"),
        (["nowhere.py"], "there is no file 'nowhere.py'"),
    ]:
        with pytest.raises(SystemExit) as exit_:
            main(["index-diff", "capture", *map(str, arguments)])
        assert exit_.value.code == 2
        assert says in capsys.readouterr().err
