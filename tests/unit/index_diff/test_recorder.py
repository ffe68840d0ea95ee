"""How a program's build is recorded, of a library that has the methods and files of colbert-ai's indexer."""

from __future__ import annotations

import json
import shutil
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch
from written_index import captured, damage, made

from li_plugins.errors import BadInput
from li_plugins.index_diff import resumed
from li_plugins.index_diff.capture import Capture, write_manifest
from li_plugins.index_diff.recorder import Recording, _Steps

INDEXER = """
    import json, os, random
    from types import SimpleNamespace

    import torch
    from colbert.infra.launcher import Launcher
    from colbert.utils import distributed

    class IndexSaver:
        def __init__(self, config):
            self.config = config
        def path(self, name):
            return os.path.join(self.config.index_path_, name)
        def save_chunk(self, chunk_idx, offset, embs, doclens):
            torch.save(embs.sum(), self.path(f"{chunk_idx}.sum.pt"))
            torch.save(torch.zeros(len(embs), dtype=torch.int32), self.path(f"{chunk_idx}.codes.pt"))
            torch.save(torch.zeros(len(embs), 1, dtype=torch.uint8), self.path(f"{chunk_idx}.residuals.pt"))
            for name, content in (f"doclens.{chunk_idx}.json", doclens), (f"{chunk_idx}.metadata.json", {}):
                with open(self.path(name), "w") as file:
                    json.dump(content, file)

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
                self.setup()
                if not self.config.resume or not os.path.exists(self.saver.path("centroids.pt")):
                    self.train(shared_lists)
                self.index()
                self.finalize()
        def setup(self):
            self.num_chunks = 2
            if self.config.resume and os.path.exists(self.saver.path("plan.json")):
                return
            self._sample_embeddings(self._sample_pids())
            with open(self.saver.path("plan.json"), "w") as file:
                json.dump({"num_chunks": 2}, file)
        def train(self, shared_lists):
            sample, heldout = self._concatenate_and_split_sample()
            centroids = self._train_kmeans(sample, shared_lists)
            *buckets, average = self._compute_avg_residual(centroids, heldout)
            torch.save(centroids, self.saver.path("used.pt"))
            torch.save(centroids.half(), self.saver.path("centroids.pt"))
            torch.save(tuple(buckets), self.saver.path("buckets.pt"))
            torch.save(average, self.saver.path("avg_residual.pt"))
        def index(self):
            for chunk_idx in range(2):
                if self.config.resume and os.path.exists(self.saver.path(f"{chunk_idx}.metadata.json")):
                    continue
                if os.environ.get("KILLED_AT") == str(chunk_idx):
                    os._exit(9)
                self.saver.save_chunk(chunk_idx, 0, self.encode()[3 * chunk_idx :][:3].float(), [3])
        def encode(self):
            hidden = self.checkpoint.bert(torch.arange(6).view(2, 3), attention_mask=torch.ones(2, 3))[0]
            return self.checkpoint.linear(hidden).view(6, 3)
        def _sample_pids(self):
            return set(random.sample(range(9), 3))
        def _sample_embeddings(self, pids):
            torch.save(self.encode().half(), os.path.join(self.config.index_path_, "sample.0.pt"))
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

    def build(folder, seed, resume):
        os.makedirs(folder, exist_ok=True)
        torch.manual_seed(seed)
        Launcher(encode).launch(SimpleNamespace(index_path_=folder, resume=resume))
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

        build(sys.argv[1], int(sys.argv[2]), "resume" in sys.argv)
"""


@pytest.fixture
def recorded(site):
    """Return a function that runs ``capture`` over a program which builds an index: the process, and the folder."""
    site.module("colbert.indexing.collection_indexer", INDEXER)
    site.module("colbert.infra.launcher", LAUNCHER)
    site.module("colbert.utils.distributed", "def barrier(rank):\n    pass\n")
    script = site.path / "index.py"
    script.write_text(dedent(SCRIPT))

    def run(name, seed, *options, resume=False, **environment):
        folder = site.path / "indexes" / name
        arguments = [str(script), str(folder), str(seed), *(["resume"] if resume else [])]
        done = site.run("-m", "li_plugins", "index-diff", "capture", *options, *arguments, **environment)
        return done, folder

    return run


def test_a_build_is_recorded_and_takes_what_is_injected(recorded):
    done, first = recorded("one", 3, "--texts", "1", CHILD="1")
    assert done.returncode == 0, done.stderr
    capture = first / "capture"
    manifest = json.loads((capture / "manifest.json").read_text())["files"]
    assert manifest.keys() == {
        "environment.json", "sampled_passages.pt", "sample.0.pt", "rng.pt", "centroids.pt", "0.embeddings.pt",
        "1.embeddings.pt", "layers.pt",
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
    write_manifest(capture)
    done, _ = recorded("four", 3, "--inject", f"centroids={first}")
    assert done.returncode == 1
    assert "injected centroids have the shape of the build's own, [2, 3]; found [5, 3]" in done.stderr


def test_a_build_that_was_killed_and_is_resumed_goes_on_with_its_capture(recorded):
    done, index = recorded("one", 3, KILLED_AT="1")
    assert done.returncode == 9
    with pytest.raises(BadInput, match="an unfinished capture"):
        Capture(index)
    sample = (index / "capture/sample.0.pt").read_bytes()
    done, _ = recorded("one", 3, resume=True)
    assert (done.returncode, done.stderr) == (0, "")
    capture = Capture(index)
    assert (index / "capture/sample.0.pt").read_bytes() == sample
    for chunk in range(2):
        total = float(torch.load(index / f"{chunk}.sum.pt"))
        assert float(capture.embeddings(chunk).float().sum()) == pytest.approx(total, abs=1e-3)
    assert len(capture.sampled_passages) == 3
    assert {"torch", "numpy", "python"} == capture.rng.keys()
    assert "projection" in capture.layers["layers"]
    # nothing is left to record: what is there stays, and another environment does not matter
    before = {path.name: path.read_bytes() for path in (index / "capture").iterdir()}
    done, _ = recorded("one", 3, resume=True, MKL_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.read_bytes() for path in (index / "capture").iterdir()} == before


def test_a_build_that_is_resumed_without_its_beginning_has_no_capture(recorded):
    done, index = recorded("one", 3)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(index / "capture")
    (index / "1.metadata.json").unlink()
    done, _ = recorded("one", 3, resume=True)
    assert done.returncode == 0, done.stderr
    assert (index / "1.metadata.json").exists()
    assert not (index / "capture").exists()
    assert f"{index} is resumed and will have no capture: nothing was recorded of its beginning" in done.stderr
    assert "sampled_passages.pt, sample.0.pt, rng.pt and 2 more were not recorded" in done.stderr


def without(*names):
    def change(index):
        for name in names:
            (index / name).unlink()

    return change


def replaced(name, content):
    def change(index):
        torch.save(content, index / name)

    return change


UNFINISHED = "capture/manifest.json"


@pytest.mark.parametrize(
    ("changes", "about", "says"),
    [
        ([], {"torch": "2.15.0"}, ""),
        ([without("1.codes.pt")], {}, ""),
        ([without("1.codes.pt")], {"torch": "2.15.0"}, "its beginning was recorded with another torch"),
        ([], {"injected": {"rng": "x"}}, "its beginning was recorded with another injected"),
        ([replaced("centroids.pt", torch.zeros(12, 32).half())], {}, "the capture in it is not of its centroids.pt"),
        ([lambda index: damage(index / "capture/0.embeddings.pt")], {}, "0.embeddings.pt is what was captured"),
        ([without(UNFINISHED)], {"torch": "2.15.0"}, ""),
        ([without(UNFINISHED, "1.codes.pt", "capture/1.embeddings.pt")], {}, ""),
        ([without(UNFINISHED, "1.codes.pt")], {"torch": "2.15.0"}, "its beginning was recorded with another torch"),
        ([without(UNFINISHED, "capture/1.embeddings.pt")], {}, "the capture in it has no 1.embeddings.pt"),
        ([without(UNFINISHED, "capture/rng.pt")], {}, "the capture in it has no rng.pt"),
        ([without(UNFINISHED), replaced("capture/centroids.pt", torch.ones(12, 32))], {}, "has other centroids"),
        ([without(UNFINISHED), replaced("capture/0.embeddings.pt", torch.ones(3, 32))], {}, "embeddings of chunk 0"),
        ([without(UNFINISHED), lambda index: damage(index / "capture/0.embeddings.pt")], {}, "it is damaged"),
        ([without("plan.json", "metadata.json")], {}, "plan.json is part of the index"),
    ],
)
def test_which_capture_a_build_that_is_resumed_goes_on_with(tmp_path, changes, about, says):
    index = captured(made(), tmp_path / "a", injected={})
    assert resumed.is_trained(index)
    for change in changes:
        change(index)
    found = resumed.obstacle(index, {"torch": "2.13.0", "injected": {}, **about})
    assert says in found
    assert bool(says) == bool(found)


def test_what_is_injected_too_late_is_refused_and_nothing_removed(tmp_path):
    index = captured(made(), tmp_path / "a")
    indexer = SimpleNamespace(
        rank=0,
        config=SimpleNamespace(resume=True, index_path_=str(index)),
        checkpoint=SimpleNamespace(model=SimpleNamespace(config=None)),
    )
    steps = _Steps(Recording(injected={"rng": str(index)}), lambda rank: None)
    with pytest.raises(BadInput, match=r"rng can be injected into the build of .* a build that is resumed"):
        steps.run(pytest.fail, indexer)
    Capture(index)


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
