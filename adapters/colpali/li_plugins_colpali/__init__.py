"""colpali-engine's targets, as data; read by the host without importing colpali-engine."""

from __future__ import annotations

from li_plugins.api import Adapter, Target, hookimpl

_LOSSES = "colpali_engine.loss.late_interaction_losses"
_KERNELS = "colpali_engine.utils._lik_backend"
_WITH_SEAM = ">=0.3.17"

_MODULE = {
    f"{_LOSSES}:ColbertModule.{name}": [fingerprint]
    for name, fingerprint in (
        ("_aggregate", "00586843"),
        ("_smooth_max", "a377bc67"),
        ("_apply_normalization", "a12394c1"),
        ("_filter_high_negatives", "5b15ef3f"),
        ("_get_idx", "47b84b75"),
    )
}
"""What the replaced losses call, in every release from 0.3.11 alike."""
_DISPATCHERS = {
    "colpali_engine.utils.maxsim:maxsim_inbatch": ["aa005564"],
    "colpali_engine.utils.maxsim:maxsim_kd": ["2c09366e"],
}


def _seam(name: str, fingerprint: str) -> Target:
    """Return one of the two functions through which the library calls a fused kernel."""
    return Target(
        f"{_KERNELS}:{name}",
        f"li_plugins_colpali.kernels:{name}",
        bodies={"0.3.17 - 0.3.18": fingerprint},
        explain=f"li_plugins_colpali.kernels:explain_{name}",
        versions=_WITH_SEAM,
    )


def _loss(name: str, replacement: str, versions: str, releases: str, body: str) -> Target:
    """Return a loss, or what its scores come from; from 0.3.17 on it calls the library's dispatchers."""
    return Target(
        f"{_LOSSES}:{name}",
        f"li_plugins_colpali.losses:{replacement}",
        bodies={releases: body},
        versions=versions,
        also={**_MODULE, **_DISPATCHERS} if versions == _WITH_SEAM else _MODULE,
    )


@hookimpl
def li_plugins_adapters() -> list[Adapter]:
    """Offer colpali-engine's kernel seam, losses, scoring and token pooling."""
    return [
        Adapter(
            "colpali",
            requires="colpali-engine>=0.3.10,<0.3.19",
            summary="colpali-engine: scores and losses through MaxSim, packed score_multi_vector, faster token pooling",
            targets=[
                _seam("maxsim_inbatch_lik", "de6635c7"),
                _seam("maxsim_kd_lik", "35ab45f1"),
                _loss("ColbertModule._inbatch_scores", "inbatch_scores", _WITH_SEAM, "0.3.17 - 0.3.18", "3f7ea45e"),
                _loss("ColbertLoss.forward", "contrastive", ">=0.3.11,<0.3.17", "0.3.11 - 0.3.16", "c89084a2"),
                _loss("ColbertPairwiseCELoss.forward", "pairwise", ">=0.3.11,<0.3.17", "0.3.11 - 0.3.16", "4b0b91a5"),
                # The sign of 0.3.13 was another.
                _loss("ColbertSigmoidLoss.forward", "sigmoid", ">=0.3.14,<0.3.17", "0.3.14 - 0.3.16", "919ff0b2"),
                # Before 0.3.13 a query had one negative, of rank 3.
                *(
                    _loss(f"{name}.forward", replacement, versions, releases, body)
                    for name, replacement, before, since in (
                        ("ColbertNegativeCELoss", "with_negatives", "5b52c7dd", "87af364d"),
                        ("ColbertPairwiseNegativeCELoss", "pairwise_with_negatives", "92e0eb78", "fd3a18c5"),
                    )
                    for versions, releases, body in (
                        (">=0.3.13,<0.3.17", "0.3.13 - 0.3.16", before),
                        (_WITH_SEAM, "0.3.17 - 0.3.18", since),
                    )
                ),
                Target(
                    "colpali_engine.utils.processing_utils:BaseVisualRetrieverProcessor.score_multi_vector",
                    "li_plugins_colpali.scoring:score_multi_vector",
                    bodies={"0.3.10 - 0.3.16": "494e8cc2", "0.3.17 - 0.3.18": "22aabe10"},
                    explain="li_plugins_colpali.scoring:explain_score_multi_vector",
                    also={"colpali_engine.utils.torch_utils:get_torch_device": ["c31ad0fb"]},
                ),
                Target(
                    "colpali_engine.compression.token_pooling.hierarchical_token_pooling:"
                    "HierarchicalTokenPooler._pool_single_embedding",
                    "li_plugins_colpali.pooling:pool_single_embedding",
                    bodies={"0.3.10 - 0.3.18": "620a8f17"},
                    explain="li_plugins_colpali.pooling:explain_pool_single_embedding",
                ),
            ],
        )
    ]
