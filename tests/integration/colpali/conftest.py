"""colpali-engine with li-plugins and, in the same process, without."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from li_plugins.testing.switching import enabling

collect_ignore = ["upstream"]

OURS = ("li_plugins", "test_colpali", "conftest", "tiny_models")
"""Modules whose warnings stay errors."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "switches: the test enables and disables by itself")
    # Warnings of the library and what it stands on are not ours; each release of them has its own.
    config.addinivalue_line("filterwarnings", f"default:::(?!{'|'.join(OURS)}).")


_enabled = enabling(
    "colpali",
    "colpali_engine.compression.token_pooling.hierarchical_token_pooling:HierarchicalTokenPooler._pool_single_embedding",
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the library's own code, even where late-interaction-kernels is installed: it has 16-bit products."""
    if hasattr(import_module("colpali_engine.loss.late_interaction_losses"), "maxsim_inbatch"):
        monkeypatch.setattr(import_module("colpali_engine.utils._lik_backend"), "_IMPORT_OK", False)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    return str(val) if isinstance(val, torch.dtype) else None
