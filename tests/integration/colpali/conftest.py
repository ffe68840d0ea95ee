"""colpali-engine with li-plugins and, in the same process, without."""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

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


@pytest.fixture
def backend_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, torch.Size]]:
    """Shapes that late-interaction-kernels is given, which the user names; it multiplies in 16 bits, as the real one.

    Releases before 0.3.17 have no backends.
    """
    calls = []

    def maxsim(query: Tensor, doc: Tensor) -> Tensor:
        calls.append((query.shape, doc.shape))
        pairs = "and,bsd->abns" if doc.ndim == 3 else "and,absd->abns"
        return torch.einsum(pairs, query.bfloat16(), doc.bfloat16()).float().amax(-1).sum(-1)

    monkeypatch.setenv("COLPALI_SCORES_BACKEND", "lik")
    if hasattr(import_module("colpali_engine.loss.late_interaction_losses"), "maxsim_inbatch"):
        backend = import_module("colpali_engine.utils._lik_backend")
        monkeypatch.setattr(backend, "_lik_device", lambda query, doc: "cuda")
        monkeypatch.setitem(sys.modules, "late_interaction_kernels", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "late_interaction_kernels.autograd", SimpleNamespace(maxsim=maxsim))
    return calls


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    return str(val) if isinstance(val, torch.dtype) else None
