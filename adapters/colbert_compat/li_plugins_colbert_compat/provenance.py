"""No git is needed to import the library, nor to save an index.

``utility/utils/save_metadata.py`` imports GitPython, which raises ``ImportError`` where no ``git`` can be run; every
module of the library stands on it. Its ``get_metadata_only`` then notes the commit that the program runs from beside
each configuration and index that is saved. It knows the case of no repository, and raises what GitPython raises where
there is one without a ``git`` to ask, on a detached head, before the first commit, or of another owner.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

MODE = "GIT_PYTHON_REFRESH"
"""What GitPython reads when it is imported without a git: by default it raises."""


def refresh(cls: Any, path: Any = None, *, original: Any = None) -> Any:
    """Look for git, as GitPython does at its import; where there is none its commands raise, not the import."""
    try:
        return original(cls, path)
    except ImportError:
        if path is not None or MODE in os.environ:
            raise
        # as after "quiet": a command looks for it again, and raises what is true then
        cls.GIT_PYTHON_GIT_EXECUTABLE = cls.git_exec_name
        return False


def get_metadata_only(*, original: Any = None) -> Any:
    """Return the host, the command line, the time and, where git tells it, the commit."""
    from colbert.utils.utils import dotdict
    from git.exc import GitError

    try:
        return original()
    # TypeError: a detached head. ValueError: no commit yet, or a repository of another owner.
    except (GitError, OSError, TypeError, ValueError):
        return dotdict(
            hostname=socket.gethostname(),
            current_datetime=time.strftime("%b %d, %Y ; %l:%M%p %Z (%z)"),
            cmd=" ".join(sys.argv),
        )
