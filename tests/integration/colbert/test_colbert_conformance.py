"""What every adapter promises, for colbert-ai's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from li_plugins.api import Target
from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestColbert(Conformance):
    adapter = "colbert"
    preload = ("torch", "transformers.models.bert.modeling_bert", "torch.utils.cpp_extension", "git", "faiss")

    def arguments(self, target: Target) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if target.path.endswith("ResidualCodec.try_load_torch_extensions"):
            return [False], {}  # anything that is true compiles CUDA
        return super().arguments(target)
