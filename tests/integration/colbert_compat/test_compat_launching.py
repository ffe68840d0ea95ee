"""A rank that dies ends the run with an error; by itself the library waits for it forever."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
from colbert.infra import ColBERTConfig, Run, RunConfig
from colbert.infra import launcher as library
from colbert.infra.launcher import Launcher
from conftest import Unmended
from torch.multiprocessing import ProcessExitedException

import li_plugins


@pytest.fixture
def _forked() -> Iterator[None]:
    """Let ranks begin with what is imported here: a spawned one takes half a minute to import it again."""
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method("spawn", force=True)  # as the library has it


def launch(callee: Callable[..., Any], root: Path, *arguments: Any, nranks: int = 1, **options: Any) -> Any:
    with Run().context(RunConfig(nranks=nranks, root=str(root), experiment="tests", gpus=0)):
        return Launcher(callee, **options).launch(ColBERTConfig(root=str(root)), *arguments)


@pytest.mark.usefixtures("_forked")
def test_by_itself_the_library_waits_forever(
    tmp_path: Path, unmended: Unmended, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues: list[Any] = []
    own = library.mp.Queue
    monkeypatch.setattr(library.mp, "Queue", lambda: queues.append(own()) or queues[-1])
    started: list[Any] = []
    start = multiprocessing.process.BaseProcess.start
    monkeypatch.setattr(
        multiprocessing.process.BaseProcess, "start", lambda self: (start(self), started.append(self))[0]
    )
    with unmended():
        waiting = threading.Thread(target=launch, args=(ranks.is_killed, tmp_path), daemon=True)
        waiting.start()
        while not started:
            time.sleep(0.1)
        started[0].join(120)
        assert started[0].exitcode == -9
        waiting.join(5)  # five times what ours waits
        assert waiting.is_alive()
        queues[0].put((0, None))  # the answer that never comes
        waiting.join(60)
        assert not waiting.is_alive()


@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize(
    ("callee", "code", "says"),
    [
        (ranks.is_killed, -9, r"rank 0 of 1 \(process \d+\) was killed by SIGKILL, as the kernel does"),
        (ranks.leaves, 0, r"rank 0 of 1 \(process \d+\) ended with exit code 0"),
    ],
)
def test_a_rank_that_dies_is_an_error(callee: Callable[..., Any], code: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException, match=says) as caught:
        launch(callee, tmp_path)
    assert (caught.value.error_index, caught.value.exit_code) == (0, code)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("_forked")
def test_a_rank_that_raises_says_so_and_the_others_are_stopped(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(ProcessExitedException, match=r"rank 1 of 2 .* exit code 1: what it raised is printed above"):
        launch(ranks.raises_on_the_last, tmp_path, str(tmp_path / "started"), nranks=2)
    assert "RuntimeError: this rank cannot" in capfd.readouterr().err
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("_forked")
def test_what_the_ranks_return_comes_in_their_order(tmp_path: Path, unmended: Unmended, capfd: Any) -> None:
    assert launch(ranks.number, tmp_path, nranks=3, return_all=True) == [0, 10, 20]
    ours = capfd.readouterr().out
    assert launch(ranks.number, tmp_path, nranks=2) == 0
    with unmended():
        assert launch(ranks.number, tmp_path, nranks=3, return_all=True) == [0, 10, 20]
    assert [ours.count(f"#> {word}...") for word in ("Starting", "Joined")] == [3, 3]


@pytest.mark.switches
def test_a_rank_is_mended_as_its_parent_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LI_PLUGINS", raising=False)
    li_plugins.enable("colbert-compat", strict=True)
    assert launch(ranks.enabled, tmp_path) == ["colbert-compat"]


def test_what_cannot_be_sent_to_a_rank_raises_and_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        launch(ranks.number, tmp_path, lambda: None, nranks=2)
    assert not multiprocessing.active_children()


@pytest.mark.allow_fallback(reason="what is no configuration is the library's to refuse")
def test_what_is_no_configuration_is_refused_as_ever() -> None:
    with pytest.raises(AssertionError):
        Launcher(ranks.number).launch(object())


def test_training_on_the_cpu_ends_with_an_error(checkpoint: Path, tmp_path: Path) -> None:
    # the library trains on GPUs alone: its process group is made where there is one
    import tiny_colbert
    from colbert import Trainer

    texts = tiny_colbert.passages(9)
    collection, queries, triples = (tmp_path / name for name in ("collection.tsv", "queries.tsv", "triples.jsonl"))
    for path in (collection, queries):
        path.write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(texts)))
    triples.write_text("".join(f"[{n}, {n}, {n + 1}]\n" for n in range(8)))
    with Run().context(RunConfig(nranks=1, root=str(tmp_path), experiment="tests")):
        config = tiny_colbert.config(checkpoint, tmp_path, bsize=2, nway=2, avoid_fork_if_possible=False)
        trainer = Trainer(str(triples), str(queries), str(collection), config=config)
        os.environ["LI_PLUGINS"] = "1,colbert-compat"
        try:
            with pytest.raises(ProcessExitedException, match="rank 0 of 1"):
                trainer.train(checkpoint=str(checkpoint))
        finally:
            del os.environ["LI_PLUGINS"]
