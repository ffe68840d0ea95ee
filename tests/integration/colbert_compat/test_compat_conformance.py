"""What every adapter promises, for the one that mends colbert-ai."""

from __future__ import annotations

import pytest

import li_plugins
from li_plugins.testing.conformance import Conformance


@pytest.mark.switches
class TestColbertCompat(Conformance):
    adapter = "colbert-compat"
    preload = (
        "torch.utils.cpp_extension",
        *(f"transformers.models.{m}.modeling_{m}" for m in ("bert", "roberta", "xlm_roberta", "electra", "deberta_v2")),
        "faiss",
        "scipy.sparse",
        "gitdb",
    )


@pytest.mark.switches
def test_only_who_names_it_gets_it() -> None:
    def states() -> set[str]:
        return {row.state for row in li_plugins.status().rows if row.adapter == "colbert-compat"}

    import colbert  # noqa: F401

    li_plugins.enable_all()
    assert states() == {"off"}
    li_plugins.enable("colbert-compat", strict=True)
    assert "patched" in states()
    assert "off" not in states()
