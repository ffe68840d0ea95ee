"""colbert-ai's configuration of an index, read from the index."""

from __future__ import annotations

import os
from typing import Any

from li_plugins_colbert.damage import ANEW, METADATA, PLAN, DamagedIndex, unreadable
from li_plugins_colbert.staging import recover


def load_from_index(cls: Any, index_path: str) -> Any:
    """Return the configuration that an index was built with, from its metadata or, unfinished, from its plan.

    Raises
    ------
    DamagedIndex
        At least one of them is there, and none can be read.
    """
    metadata, plan = os.path.join(index_path, METADATA), os.path.join(index_path, PLAN)
    recover(index_path)
    try:
        loaded, _ = cls.from_path(metadata)
    except Exception:  # as in the library, which takes the plan whatever happened
        try:
            loaded, _ = cls.from_path(plan)
        except (ValueError, FileNotFoundError) as error:  # JSON that ends too early, or no plan either
            file = metadata if os.path.exists(metadata) else plan
            if not os.path.exists(file):
                raise
            raise DamagedIndex(file, str(unreadable(file)), ANEW) from error
    return loaded


def explain_load_from_index(cls: Any, index_path: str) -> object:
    """Say where the configuration is read."""
    return f"{METADATA}, else {PLAN}"
