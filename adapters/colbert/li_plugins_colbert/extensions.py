"""colbert-ai's C++ extensions, which nobody has to compile: its classes get operations of torch in their place.

The library looks its operations up on the class and marks a class whose extensions it loaded. An extension that this
process loaded before stays: it is bit for bit the same, and quicker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from li_plugins_colbert import operations


class StandIn:
    """An operation in the place of one that is not compiled, on the class that looks it up.

    It outlives the adapter: a searcher that was made while it was enabled goes on to work when it is disabled, and
    then with the library's own operation, which is compiled at its first call.
    """

    def __init__(self, owner: Any, name: str, operation: Callable[..., Any]) -> None:
        self._owner, self._name, self._operation = owner, name, operation

    def __repr__(self) -> str:
        return f"<{self._operation.__module__}.{self._operation.__name__} in the place of {self._name}>"

    def __call__(self, *arguments: Any) -> Any:
        """Call the operation, or the library's own one once the adapter is disabled."""
        self._owner.try_load_torch_extensions(False)
        found = getattr(self._owner, self._name)
        return self._operation(*arguments) if found is self else found(*arguments)


def load_for_colbert(cls: Any, use_gpu: bool) -> None:
    """Give ``ColBERT`` its ``segmented_maxsim``."""
    _install(cls, use_gpu, operations.segmented_maxsim)


def load_for_strided_tensor(cls: Any, use_gpu: bool) -> None:
    """Give ``StridedTensor`` its ``segmented_lookup``."""
    _install(cls, use_gpu, operations.segmented_lookup)


def load_for_index_scorer(cls: Any, use_gpu: bool) -> None:
    """Give ``IndexScorer`` its ``filter_pids`` and ``decompress_residuals``."""
    _install(cls, use_gpu, operations.filter_pids, operations.decompress_residuals)


def _install(cls: Any, use_gpu: bool, *found: Callable[..., Any]) -> None:
    """Set what the class looks up, unless it has its extensions or, on a GPU, needs none."""
    if hasattr(cls, "loaded_extensions") or use_gpu:
        return
    for operation in found:
        name = operation.__name__
        if not isinstance(vars(cls).get(name), StandIn):
            setattr(cls, name, StandIn(cls, name, operation))
