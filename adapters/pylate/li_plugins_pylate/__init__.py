"""PyLate's targets, as data; read by the host without importing PyLate."""

from __future__ import annotations

from li_plugins.api import Adapter, Target, hookimpl

_SCORES = {"1.3.0 - 1.3.4": "85c174bb", "1.4.0 - 1.5.0": "db63cb6a", "1.5.1 - 1.6.0": "2d631eca"}
_KD_SCORES = {"1.3.0 - 1.5.0": "89bf85d2", "1.5.1 - 1.6.0": "33f1259c"}
_PAIRWISE_SCORES = {"1.3.0 - 1.5.0": "710ceabd", "1.5.1 - 1.6.0": "f8a0ac33"}

# What the replacements call, in every release alike.
_CONVERT = {"pylate.utils.tensor:convert_to_tensor": ["41c46b9d"]}
_RESHAPE = {"pylate.rank.rank:reshape_embeddings": ["46abbfd7"]}


def _score_targets(module: str, versions: str) -> list[Target]:
    """Return the three functions, which moved to another module in 1.5."""
    return [
        Target(
            f"{module}:{name}",
            f"li_plugins_pylate.scores:{name}",
            bodies=bodies,
            explain=f"li_plugins_pylate.scores:explain_{name}",
            versions=versions,
            also=_CONVERT,
        )
        for name, bodies in (
            ("colbert_scores", _SCORES),
            ("colbert_kd_scores", _KD_SCORES),
            ("colbert_scores_pairwise", _PAIRWISE_SCORES),
        )
    ]


@hookimpl
def li_plugins_adapters() -> list[Adapter]:
    """Offer PyLate's scores, reranking and skiplist mask."""
    return [
        Adapter(
            "pylate",
            requires="pylate>=1.3.0,<1.7",
            summary="PyLate: scores, losses and evaluators through MaxSim, XTR scores without the grid, packed "
            "reranking, one-pass skiplist masks",
            targets=[
                *_score_targets("pylate.scores.scores", "<1.5"),
                *_score_targets("pylate.scores.colbert", ">=1.5"),
                Target(
                    "pylate.scores.colbert:ColBERTScores.__call__",
                    "li_plugins_pylate.scores:call_colbert_scores",
                    bodies={"1.5.0": "1b8b50ff", "1.5.1 - 1.6.0": "1ace6a71"},
                    explain="li_plugins_pylate.scores:explain_call_colbert_scores",
                    versions=">=1.5",
                    also={**_CONVERT, "pylate.scores.colbert:colbert_scores": list(_SCORES.values())},
                ),
                Target(
                    "pylate.scores.xtr:XTRScores._score",
                    "li_plugins_pylate.retrieval:score",
                    bodies={"1.5.0 - 1.6.0": "5757d67e"},
                    explain="li_plugins_pylate.retrieval:explain_score",
                    versions=">=1.5",
                ),
                Target(
                    "pylate.rank.rank:rerank",
                    "li_plugins_pylate.rank:rerank",
                    bodies={"1.3.0": "0301326b", "1.3.1 - 1.6.0": "531bab4e"},
                    explain="li_plugins_pylate.rank:explain_rerank",
                    also={**_CONVERT, **_RESHAPE, "pylate.rank.rank:colbert_scores": list(_SCORES.values())},
                ),
                Target(
                    "pylate.models.colbert:ColBERT.skiplist_mask",
                    "li_plugins_pylate.encode:skiplist_mask",
                    bodies={"1.3.0 - 1.6.0": "4f1ff4fc"},
                    explain="li_plugins_pylate.encode:explain_skiplist_mask",
                ),
            ],
        )
    ]
