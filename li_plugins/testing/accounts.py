"""A plugin for a library's own pytest run: leaves out what a list names, and tells what li-plugins did there.

``LI_PLUGINS`` names the adapter. ``DESELECT`` holds a JSON list of how ids begin; ``ACCOUNTS`` names the file to write.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import li_plugins

LIST: list[str] = json.loads(os.environ["DESELECT"])

deselected: dict[str, int] = {}
"""How many tests each line of the list leaves out."""

ragged: Counter[str] = Counter()
"""How often an operation ran over texts without padding; to its kernels' counts they are like any other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the listed tests."""
    kept = []
    for item in items:
        # pytest shortens the path of an installed module in an id, not a doctest's name
        line = next((begin for begin in LIST if item.nodeid.startswith(begin) or item.name.startswith(begin)), None)
        if line is None:
            kept.append(item)
        else:
            deselected[line] = deselected.get(line, 0) + 1
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish() -> None:
    """Count ragged calls from here on: nothing is imported for it that the tests did not import."""
    from li_plugins.ops import dispatch

    run = dispatch.run

    def counted(op: str, problem: Any, phase: dispatch.Phase, call: Any) -> Any:
        result = run(op, problem, phase, call)
        if getattr(problem, "query_offsets", None) is not None:
            ragged[f"{op} backward" if phase == "backward" else op] += 1
        return result

    dispatch.run = counted


def pytest_sessionfinish() -> None:
    """Write states, calls, declines with their reasons, the kernels' counts and how much the list left out."""
    from li_plugins.ops import dispatch

    status = li_plugins.status()
    rows = [row for row in status.rows if row.adapter == os.environ["LI_PLUGINS"]]
    found = {
        "states": {row.target: row.state for row in rows},
        "calls": {row.target: row.calls for row in rows},
        "declines": {target: dict(reasons) for target, reasons in status.declines.items()},
        "kernels": {f"{label} {kernel}": count for (label, kernel), count in dispatch.counters().items()},
        "ragged": ragged,
        "deselected": deselected,
    }
    Path(os.environ["ACCOUNTS"]).write_text(json.dumps(found, indent=2))
