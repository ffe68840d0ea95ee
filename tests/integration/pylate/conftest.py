"""PyLate with li-plugins and, in the same process, without."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from li_plugins.testing import parity, tiny_bert
from li_plugins.testing.switching import enabling

parity.LEAVES |= {"colbert_scores", "colbert_kd_scores", "colbert_scores_pairwise", "skiplist_mask"}

# PyLate's own suite has an environment of its own; name the folder to run it.
collect_ignore = ["upstream"]

OURS = ("li_plugins", "test_pylate", "conftest")
"""Modules whose warnings stay errors."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "switches: the test enables and disables by itself")
    # Warnings of PyLate and what it stands on are not ours; each release of them has its own.
    config.addinivalue_line("filterwarnings", f"default:::(?!{'|'.join(OURS)}).")


_enabled = enabling("pylate", "pylate.scores:colbert_scores")


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def scores() -> ModuleType:
    """The module that defines PyLate's scores, which 1.5 moved."""
    name = import_module("pylate.scores").colbert_scores.__module__
    return import_module(name)


@pytest.fixture(scope="session")
def rank() -> ModuleType:
    return import_module("pylate.rank.rank")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and its tokenizer."""
    return tiny_bert.write(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def make_model(bert: Path) -> Callable[..., Any]:
    """Make ``ColBERT`` models on the CPU, all with the same weights."""

    def make(**keywords: Any) -> Any:
        import torch
        from pylate import models

        torch.manual_seed(0)
        return models.ColBERT(
            model_name_or_path=str(bert),
            device="cpu",
            embedding_size=16,
            query_length=8,
            document_length=24,
            **keywords,
        )

    return make
