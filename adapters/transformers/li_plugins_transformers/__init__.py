"""The targets in transformers, as data; read by the host without importing transformers."""

from __future__ import annotations

from li_plugins.api import Adapter, Target, hookimpl


def _processor(model: str, name: str, versions: str = "") -> Target:
    """Return the scoring method of one processor: the same body in all of them."""
    return Target(
        f"transformers.models.{model}.processing_{model}:{name}.score_retrieval",
        "li_plugins_transformers.scoring:score_retrieval",
        bodies={"4.53.3 - 5.23.0": "0cf3ae43"},
        explain="li_plugins_transformers.scoring:explain_score_retrieval",
        versions=versions,
    )


@hookimpl
def li_plugins_adapters() -> list[Adapter]:
    """Offer the scoring of visual retrievers."""
    return [
        Adapter(
            "transformers",
            requires="transformers>=4.53,<6",
            since="4.53",
            summary="transformers: score_retrieval of ColPali, ColQwen2 and ColModernVBert through packed MaxSim",
            targets=[
                _processor("colpali", "ColPaliProcessor"),
                _processor("colqwen2", "ColQwen2Processor"),
                _processor("colmodernvbert", "ColModernVBertProcessor", ">=5.3"),
            ],
        )
    ]
