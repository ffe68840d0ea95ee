"""What a rank does in the tests of the launcher; imported by the processes that are started."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def number(config: Any) -> int:
    """Return ten times the rank."""
    return config.rank * 10


def enabled(config: Any) -> list[str]:
    """Return the adapters that are enabled in this process."""
    import li_plugins

    return sorted({row.adapter for row in li_plugins.status().rows if row.state in ("patched", "armed")})


def raises_on_the_last(config: Any, started: str) -> int:
    """Raise on the last rank; the others work for as long as they are let."""
    if config.rank == config.nranks - 1:
        raise RuntimeError("this rank cannot")
    Path(started).write_text(str(os.getpid()))
    time.sleep(600)
    return config.rank


def is_killed(config: Any) -> None:
    """End as when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(config: Any) -> None:
    """End well without an answer."""
    os._exit(0)
