"""Tuning on a CUDA device: one small shape into a file of its own, and a process that uses it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from li_plugins.ops import explain_maxsim
from li_plugins.ops.maxsim import tuning, tuning_file, tuning_rows, tuning_run, tuning_search

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPE = tuning_run.Shape(16, 24, 32, 70, 64)


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    monkeypatch.setenv("LI_PLUGINS_TUNING", str(path))
    monkeypatch.setattr(
        tuning_search,
        "AXES",
        {phase: (({"num_stages": 2},), ({"num_warps": 4},)) for phase in tuning_rows.FIELDS},
    )
    tuning_rows.forget()
    yield path
    monkeypatch.setenv("LI_PLUGINS_TUNING", "0")
    tuning_rows.forget()


def test_what_is_tuned_is_stored_and_used(file):
    device = torch.device("cuda", torch.cuda.current_device())
    problem = tuning_run.problem_of(SHAPE, device)
    sizes, card = tuning_run.sizes_of(problem), tuning_run.card_of(device)
    builtin = tuning.forward(sizes, False, card)

    def made_up(call):
        """Return a time by which every other forward is quicker, so that one is stored whatever this card does."""
        call()
        return 1.0 if tuning.forward(sizes, False, card) == builtin else 0.5

    outcomes = {outcome.phase: outcome for outcome in tuning_run.tune(SHAPE, device, measure=made_up)}
    assert list(outcomes) == ["scores", "winners", "queries", "documents"]
    assert not any(outcome.refused for outcome in outcomes.values())
    assert [phase for phase, outcome in outcomes.items() if outcome.is_better] == ["scores"]
    assert dict(tuning_file.rows()) == {outcomes["scores"].key: outcomes["scores"].best}
    assert tuning.forward(sizes, False, card).options.num_stages == 2 != builtin.options.num_stages
    found, _ = tuning_run.KERNEL.forward(problem, False)
    with tuning_rows.trial({}):
        expected, _ = tuning_run.KERNEL.forward(problem, False)
    assert tuning_run.differs((found,), (expected,)) == ""
    assert "(stored by li-plugins tune)" in str(explain_maxsim(problem.queries, problem.documents))


def test_times_of_this_card_are_stored_by_the_command_and_used_by_another_process(file):
    sizes = ("--queries", "16", "--documents", "24", "--query-length", "32", "--document-length", "70", "--dim", "64")
    done = subprocess.run(
        [sys.executable, "-m", "li_plugins", "tune", *sizes, "--json"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["phase"] for row in found["rows"]] == ["scores", "winners", "queries", "documents"]
    stored = [row for row in found["rows"] if row["stored"]]
    assert all(row["gain"] >= 0.03 for row in stored)
    assert file.exists() == bool(stored)
    tuning_rows.forget()
    assert dict(tuning_file.rows()) == {row["key"]: row["best"] for row in stored}


def test_a_row_that_does_not_fit_the_card_does_not_cost_the_kernel(file, caplog):
    device = torch.device("cuda", torch.cuda.current_device())
    problem = tuning_run.problem_of(SHAPE._replace(width=128, dtype=torch.float16), device)
    key = tuning_rows.key("scores", tuning_run.sizes_of(problem), tuning_run.card_of(device))
    row = {"ROWS": 512, "BLOCK_N": 512, "documents": 1, "num_warps": 8, "num_stages": 8, "maxnreg": None}
    tuning_file.store({key: {"blocks": row, "measured": {}}})
    scores, _ = tuning_run.KERNEL.forward(problem, False)
    assert scores.shape == (16, 24)
    assert "holds a row that does not work here" in caplog.text
