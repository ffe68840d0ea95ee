"""Processes of their own: the environment's switch, a reload, and the workers of a DataLoader."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent
from typing import Any

import pytest
import torch
from pylate.scores import colbert_scores
from torch.utils.data import DataLoader, Dataset

import li_plugins
from li_plugins.ops import dispatch


class Scored(Dataset):
    """Each item: the kernels of ours that ran in this process before and after one score."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[int, int]:
        before = sum(dispatch.counters().values())
        colbert_scores(torch.ones(1, 2, 8), torch.ones(1, 3, 8))
        return before, sum(dispatch.counters().values())


def test_a_forked_worker_runs_the_patched_function() -> None:
    for before, after in DataLoader(Scored(), num_workers=1, multiprocessing_context="fork"):
        assert after == before + 1


def python(source: str, **environment: str) -> str:
    """Run Python in a new process and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LI_PLUGINS")}
    done = subprocess.run(
        [sys.executable, "-c", dedent(source)], env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SCRIPT = """
    import importlib, os, pathlib, sys, tempfile, textwrap
    import torch  # ends with the switch
    import li_plugins
    from torch.utils.data import DataLoader

    WORKER = '''
    import torch
    from pylate.scores import colbert_scores
    from li_plugins.ops import dispatch

    class Scored(torch.utils.data.Dataset):
        def __len__(self):
            return 1
        def __getitem__(self, index):
            colbert_scores(torch.ones(1, 2, 8), torch.ones(1, 3, 8))
            return sum(dispatch.counters().values())
    '''

    def served(function):
        from li_plugins.ops import dispatch
        before = sum(dispatch.counters().values())
        function(torch.ones(1, 2, 8), torch.ones(1, 3, 8))
        return sum(dispatch.counters().values()) - before

    if __name__ == "__main__":
        assert "pylate" not in sys.modules
        states = {row.state for row in li_plugins.status().rows if row.adapter == "pylate"}
        assert states == {"armed"}, li_plugins.status()
        from pylate.scores import colbert_scores
        assert served(colbert_scores) == 1

        defining = sys.modules[colbert_scores.__module__]
        reloaded = importlib.reload(defining).colbert_scores
        assert reloaded is not colbert_scores
        assert served(reloaded) == 1
        assert served(colbert_scores) == 1

        folder = tempfile.mkdtemp()
        pathlib.Path(folder, "worker.py").write_text(textwrap.dedent(WORKER))
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder
        from worker import Scored
        (count,) = DataLoader(Scored(), num_workers=1, multiprocessing_context="spawn")
        assert count.item() == 1

        li_plugins.disable_all()
        assert served(reloaded) == served(colbert_scores) == 0
        print("done")
    """


def test_the_environments_switch_a_reload_and_a_spawned_worker() -> None:
    assert python(SCRIPT, LI_PLUGINS="pylate").endswith("done\n")


@pytest.mark.switches
def test_the_environment_wins_over_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LI_PLUGINS", "0")
    code: Any = colbert_scores.__code__
    li_plugins.enable_all()
    assert colbert_scores.__code__ is code
