"""sentence-transformers' multi-vector models with li-plugins and, in the same process, without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from li_plugins.testing import parity, tiny_bert
from li_plugins.testing.switching import enabling

parity.LEAVES |= {"_maxsim_score_documents", "_maxsim_score_pairs", "xtr_scores"}

# The library's own suite has an environment of its own; name the folder to run it.
collect_ignore = ["upstream"]

OURS = ("li_plugins", "test_st", "st_batches", "conftest")
"""Modules whose warnings stay errors."""

_enabled = enabling("sentence-transformers", "sentence_transformers.util.similarity:maxsim")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "switches: the test enables and disables by itself")
    # Warnings of the library and what it stands on are not ours; each release of them has its own.
    config.addinivalue_line("filterwarnings", f"default:::(?!{'|'.join(OURS)}).")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    return str(val) if isinstance(val, torch.dtype) else None


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def similarity() -> ModuleType:
    from sentence_transformers.util import similarity

    return similarity


@pytest.fixture(scope="session")
def scoring() -> ModuleType:
    from sentence_transformers.multi_vector_encoder import scoring

    return scoring


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and its tokenizer."""
    return tiny_bert.write(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def make_model(bert: Path) -> Callable[..., Any]:
    """Make multi-vector models on the CPU, all with the same weights."""

    def make(**keywords: Any) -> Any:
        from sentence_transformers import MultiVectorEncoder

        torch.manual_seed(0)
        return MultiVectorEncoder(str(bert), device="cpu", **keywords)

    return make
