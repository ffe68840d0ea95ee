"""colbert-ai with li-plugins and, in the same process, without."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_colbert
import torch

import li_plugins
from li_plugins.testing.switching import enabling

OURS = ("li_plugins", "test_colbert", "conftest", "tiny_colbert")
"""Modules whose warnings stay errors."""

Library = Callable[[], AbstractContextManager[dict[str, Callable[..., Any]]]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "switches: the test enables and disables by itself")
    # Warnings of the library and what it stands on are not ours; each release of them has its own.
    config.addinivalue_line("filterwarnings", f"default:::(?!{'|'.join(OURS)}).")


_enabled = enabling("colbert", "colbert.modeling.colbert:colbert_score")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test counts must not depend on whether pytest has other threads; tests of graphs ask for them."""
    monkeypatch.setenv("LI_PLUGINS_COLBERT_GRAPHS", "0")


def owners() -> list[Any]:
    """Return the classes that compile extensions."""
    from colbert.modeling.colbert import ColBERT
    from colbert.search.index_storage import IndexScorer
    from colbert.search.strided_tensor import StridedTensor

    return [ColBERT, StridedTensor, IndexScorer]


OPERATIONS = ("segmented_maxsim", "segmented_lookup", "filter_pids", "decompress_residuals")


def _take_off() -> dict[Any, dict[str, Any]]:
    """Remove what extensions left on the classes; return it."""
    found: dict[Any, dict[str, Any]] = {}
    for owner in owners():
        names = [name for name in (*OPERATIONS, "loaded_extensions") if name in vars(owner)]
        found[owner] = {name: vars(owner)[name] for name in names}
        for name in names:
            delattr(owner, name)
    return found


@pytest.fixture(scope="session")
def library() -> Library:
    """A context in which colbert-ai runs by itself, with its C++; it gives the operations by name."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler: nothing to compare with")
    with li_plugins.suspended():
        before = _take_off()
        for owner in owners():
            owner.try_load_torch_extensions(False)
        compiled = _take_off()
        _put_on(before)

    @contextmanager
    def run() -> Iterator[dict[str, Callable[..., Any]]]:
        with li_plugins.suspended():
            own = _take_off()
            _put_on(compiled)
            try:
                yield {name: getattr(owner, name) for owner in compiled for name in OPERATIONS if hasattr(owner, name)}
            finally:
                _take_off()
                _put_on(own)

    return run


def _put_on(found: dict[Any, dict[str, Any]]) -> None:
    for owner, attributes in found.items():
        for name, value in attributes.items():
            setattr(owner, name, value)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint; to make a model without the plugin would compile."""
    li_plugins.enable("colbert", strict=True)
    return tiny_colbert.write(tmp_path_factory.mktemp("colbert"))
