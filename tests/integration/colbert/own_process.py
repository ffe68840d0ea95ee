"""Scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def python(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that knows of the adapters only what it is told."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LI_PLUGINS")}
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
