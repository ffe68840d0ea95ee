"""What a child of colbert-ai's launcher can tell of itself, and the parent that asks it."""

from __future__ import annotations

import json
import os
from typing import Any

import torch


def report(config: Any, *arguments: Any) -> dict[str, Any]:
    """Return which rank this process is, what is patched in it, and what a score was computed by."""
    from colbert.infra import ColBERTConfig
    from colbert.modeling import colbert

    import li_plugins
    from li_plugins.host.session import SESSION
    from li_plugins.ops import dispatch

    before = sum(dispatch.counters().values())
    colbert.colbert_score(torch.ones(1, 2, 8), torch.ones(1, 3, 8), torch.ones(1, 3, 1), ColBERTConfig())
    states = {row.state for row in li_plugins.status().rows if row.adapter == "colbert"}
    return {
        "rank": config.rank,
        "pid": os.getpid(),
        "variable": os.environ.get("LI_PLUGINS"),
        "states": sorted(states),
        "kernels": sum(dispatch.counters().values()) - before,
        "calls": SESSION.counts()["colbert.modeling.colbert:colbert_score"][0],
        "arguments": list(arguments),
    }


def main() -> None:
    """Launch children with the adapter enabled, disabled and suspended; print what they said."""
    from colbert import Trainer, trainer
    from colbert.infra import ColBERTConfig, Run, RunConfig
    from colbert.infra.launcher import Launcher

    import li_plugins

    found: dict[str, Any] = {}

    def launch(nranks: int) -> list[dict[str, Any]]:
        return Launcher(report, RunConfig(nranks=nranks), return_all=True).launch(ColBERTConfig(), "given")

    li_plugins.enable("colbert")
    found["enabled"] = launch(2)
    found["here"] = Launcher(report, RunConfig(avoid_fork_if_possible=True)).launch_without_fork(ColBERTConfig())
    trainer.train = report
    with Run().context(RunConfig(nranks=1)):
        asked = Trainer("triples", "queries", "collection", ColBERTConfig())
        asked.train(checkpoint="model")
        found["trainer"] = asked.best_checkpoint_path()
    made_before = Launcher(report, RunConfig(nranks=1))
    li_plugins.disable_all()
    found["disabled"] = made_before.launch(ColBERTConfig())
    found["pid"] = os.getpid()
    print("found", json.dumps(found))


if __name__ == "__main__":
    main()
