"""A function on its way to another process, and the adapters that go with it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from li_plugins.errors import LiPluginsError

logger = logging.getLogger("li_plugins")


class Carried:
    """A function that, pickled, arrives in another process with what is enabled here.

    Called here it is the function. There it is the function itself again, once the adapters that ``enabled`` named at
    the time of pickling are enabled.
    """

    def __init__(self, function: Callable[..., Any], enabled: Callable[[], tuple[str, ...]]) -> None:
        self.function, self._enabled = function, enabled
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<{self.function!r}, with the adapters enabled in this process>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _arrive, (self.function, self._enabled())


def _arrive(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Enable adapters in a process that was sent a function; return the function.

    A failure is reported, and the function comes all the same: whoever sent it may wait for its answer for ever.
    """
    from li_plugins.host.session import SESSION  # it holds what carries

    if names:
        try:
            SESSION.enable(names, strict=False)
        except LiPluginsError as error:  # an adapter that this process does not find
            logger.warning("li_plugins: nothing is enabled in this process: %s", error)
    return function
