"""What every adapter promises, for colpali-engine's."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from li_plugins.testing.conformance import Conformance

# What takes the time of importing the library; not every release of transformers has all of them.
MODELS = (
    "gemma3", "idefics3", "modernvbert", "paligemma", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl",
)  # fmt: skip
HEAVY = [f"transformers.models.{name}.{kind}_{name}" for name in MODELS for kind in ("modeling", "processing")]


def is_there(module: str) -> bool:
    package = module.rpartition(".")[0]
    return find_spec(package) is not None and find_spec(module) is not None


@pytest.mark.switches
class TestColpali(Conformance):
    adapter = "colpali"
    preload = ("torch", "scipy.cluster.hierarchy", *filter(is_there, HEAVY))
