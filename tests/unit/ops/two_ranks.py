"""Two processes that are the ranks of a test: they meet at the parent's store, and leave what they found in files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def found_by(script: str, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """Return what both ranks saved; each is called ``script RANK PORT OUTPUT`` and writes ``OUTPUT + RANK + ".pt"``."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(store.port), str(folder / "found")],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=150)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    return [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in range(2)]
