"""colbert-ai mended and, in the same process, as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

import li_plugins
from li_plugins.host.session import SESSION

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent / "colbert"))
import tiny_colbert  # noqa: E402 - the texts and the checkpoint of the other adapter's tests

OURS = ("li_plugins", "test_compat", "conftest", "tiny_colbert")
"""Modules whose warnings stay errors."""
MENDED, STAND_INS = "colbert-compat", "colbert"
"""The adapter, and the one without which the library would compile its C++ first."""

Unmended = Callable[[], AbstractContextManager[None]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "switches: the test enables and disables by itself")
    # Warnings of the library and what it stands on are not ours; each release of them has its own.
    config.addinivalue_line("filterwarnings", f"default:::(?!{'|'.join(OURS)}).")


@pytest.fixture(autouse=True)
def _enabled(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    if not request.node.get_closest_marker("switches"):
        li_plugins.enable(STAND_INS, MENDED, strict=True)
    yield
    li_plugins.disable_all()


@pytest.fixture
def unmended() -> Unmended:
    """A context in which the library has its bugs."""

    @contextmanager
    def run() -> Iterator[None]:
        SESSION.disable([MENDED])
        try:
            yield
        finally:
            li_plugins.enable(MENDED, strict=True)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint."""
    li_plugins.enable(STAND_INS, MENDED, strict=True)
    return tiny_colbert.write(tmp_path_factory.mktemp("colbert"))
