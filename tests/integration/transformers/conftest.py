"""transformers with li-plugins and, in the same process, without."""

from __future__ import annotations

import pytest

from li_plugins.testing.switching import enabling

OURS = ("li_plugins", "test_transformers", "conftest")
"""Modules whose warnings stay errors."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "switches: the test enables and disables by itself")
    # Warnings of the library and what it stands on are not ours; each release of them has its own.
    config.addinivalue_line("filterwarnings", f"default:::(?!{'|'.join(OURS)}).")


_enabled = enabling("transformers", "transformers.models.colpali.processing_colpali:ColPaliProcessor.score_retrieval")
