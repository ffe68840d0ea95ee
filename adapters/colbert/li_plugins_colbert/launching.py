"""colbert-ai's children, which are spawned: they come up with the adapters of their parent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from colbert.infra import launcher

from li_plugins.api import carried


def init(self: Any, callee: Callable[..., Any], run_config: Any = None, return_all: bool = False) -> None:
    """Take the function that the children call; one that is pickled for a child takes the adapters along."""
    self.callee = carried(callee)
    self.return_all = return_all
    self.run_config = launcher.RunConfig.from_existing(launcher.Run().config, run_config)
    self.nranks = self.run_config.nranks


def explain_init(self: Any, callee: Callable[..., Any], run_config: Any = None, return_all: bool = False) -> object:
    """Say with what the children of this launcher come up."""
    return "each child enables what its parent has enabled when it is started"
