"""What every adapter promises, for colbert-ai's."""

from __future__ import annotations

import pytest

from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestColbert(Conformance):
    adapter = "colbert"
    preload = ("torch", "transformers.models.bert.modeling_bert", "torch.utils.cpp_extension", "git", "faiss")
