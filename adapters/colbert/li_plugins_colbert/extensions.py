"""colbert-ai's C++ and CUDA extensions, which nobody has to compile: its classes get our operations in their place.

The library looks its operations up on the class and marks a class whose extensions it loaded. An extension that this
process loaded before stays: it is bit for bit the same, and on the CPU quicker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from li_plugins_colbert import codec_operations, operations

Operation = Callable[..., Any]


class StandIn:
    """An operation in the place of one that is not compiled, on the class that looks it up.

    It outlives the adapter: a searcher that was made while it was enabled goes on to work when it is disabled, and
    then with the library's own operation, which is compiled at its first call.
    """

    def __init__(self, owner: Any, name: str, operation: Operation, use_gpu: bool = False) -> None:
        self._owner, self._name, self._operation, self._use_gpu = owner, name, operation, use_gpu

    def __repr__(self) -> str:
        return f"<{self._operation.__module__}.{self._operation.__name__} in the place of {self._name}>"

    def __call__(self, *arguments: Any) -> Any:
        """Call the operation, or the library's own one once the adapter is disabled."""
        self._owner.try_load_torch_extensions(self._use_gpu)
        found = getattr(self._owner, self._name)
        return self._operation(*arguments) if found is self else found(*arguments)


def load_for_colbert(cls: Any, use_gpu: bool) -> None:
    """Give ``ColBERT`` its ``segmented_maxsim``, which only the CPU's branches call."""
    _install(cls, use_gpu, _of_colbert(use_gpu))


def explain_load_for_colbert(cls: Any, use_gpu: bool) -> str:
    """Say what ``ColBERT`` calls."""
    return _explained(cls, _of_colbert(use_gpu))


def load_for_strided_tensor(cls: Any, use_gpu: bool) -> None:
    """Give ``StridedTensor`` its ``segmented_lookup``, which only the CPU's branches call."""
    _install(cls, use_gpu, _of_strided_tensor(use_gpu))


def explain_load_for_strided_tensor(cls: Any, use_gpu: bool) -> str:
    """Say what ``StridedTensor`` calls."""
    return _explained(cls, _of_strided_tensor(use_gpu))


def load_for_index_scorer(cls: Any, use_gpu: bool) -> None:
    """Give ``IndexScorer`` its ``filter_pids`` and ``decompress_residuals``, which only the CPU's branches call."""
    _install(cls, use_gpu, _of_index_scorer(use_gpu))


def explain_load_for_index_scorer(cls: Any, use_gpu: bool) -> str:
    """Say what ``IndexScorer`` calls."""
    return _explained(cls, _of_index_scorer(use_gpu))


def load_for_residual_codec(cls: Any, use_gpu: bool) -> None:
    """Give ``ResidualCodec`` its ``decompress_residuals`` and ``packbits``, which only the GPU's branches call."""
    _install(cls, use_gpu, _of_residual_codec(use_gpu))


def explain_load_for_residual_codec(cls: Any, use_gpu: bool) -> str:
    """Say what ``ResidualCodec`` calls."""
    return _explained(cls, _of_residual_codec(use_gpu))


def _of_colbert(use_gpu: bool) -> list[Operation]:
    return [] if use_gpu else [operations.segmented_maxsim]


def _of_strided_tensor(use_gpu: bool) -> list[Operation]:
    return [] if use_gpu else [operations.segmented_lookup]


def _of_index_scorer(use_gpu: bool) -> list[Operation]:
    return [] if use_gpu else [operations.filter_pids, operations.decompress_residuals]


def _of_residual_codec(use_gpu: bool) -> list[Operation]:
    return [codec_operations.decompress_residuals, codec_operations.packbits] if use_gpu else []


def _install(cls: Any, use_gpu: bool, found: list[Operation]) -> None:
    """Set what the class looks up, unless it has its extensions."""
    if hasattr(cls, "loaded_extensions"):
        return
    for operation in found:
        name = operation.__name__
        if not isinstance(vars(cls).get(name), StandIn):
            setattr(cls, name, StandIn(cls, name, operation, use_gpu))


def _explained(cls: Any, found: list[Operation]) -> str:
    names = ", ".join(operation.__name__ for operation in found)
    if not found:
        return "nothing: none of its operations is called here"
    if hasattr(cls, "loaded_extensions"):
        return f"{names}: of the library's extension, which this process has loaded; on the CPU it is the quicker one"
    return f"{names}: of {found[0].__module__}, nothing is compiled"
