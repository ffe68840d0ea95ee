"""sentence-transformers' targets, as data; read by the host without importing sentence-transformers."""

from __future__ import annotations

from li_plugins.api import Adapter, Target, hookimpl

_SIMILARITY = "sentence_transformers.util.similarity"
_SCORING = "sentence_transformers.multi_vector_encoder.scoring.colbert"
_XTR = "sentence_transformers.multi_vector_encoder.scoring.xtr"

_SCORE_DOCUMENTS = {"6.0.0 - 6.2.0": "fef52475"}
_SCORE_PAIRS = {"6.0.0 - 6.2.0": "6ed50536"}
_MAXSIM = {"6.0.0 - 6.1.0": "0254ef87", "6.2.0": "1dba9535"}
_XTR_SCORES = {"6.0.0 - 6.2.0": "2ebf6750"}
_MAXSIM_PAIRWISE = {"6.0.0 - 6.2.0": "b058b8db"}

# What the replacements call, in every release alike.
_FILL = {f"{_SIMILARITY}:_fill_empty_document_scores": ["aaaa20f4"]}
_CONVERTED = {
    f"{_SIMILARITY}:_zero_row_mask": ["67876270"],
    "sentence_transformers.util.tensor:_convert_to_tensor": ["04dc60f5", "171fc4e3"],
}
_READ = {
    **_CONVERTED,
    f"{_SIMILARITY}:_batch_singular_input": ["e2fa0e28"],
    f"{_SIMILARITY}:_embeddings_device": ["e5f459a0"],
    f"{_SIMILARITY}:_query_token_counts": ["aa834241"],
}
_RETRIEVAL = {**_FILL, **_CONVERTED}


@hookimpl
def li_plugins_adapters() -> list[Adapter]:
    """Offer the MaxSim of multi-vector models, and their XTR scores."""
    return [
        Adapter(
            "sentence-transformers",
            requires="sentence-transformers>=6.0,<6.3",
            since="6.0",
            summary="sentence-transformers: multi-vector similarity, losses and evaluators through MaxSim, "
            "ragged lists without padding, XTR scores without the grid",
            targets=[
                Target(
                    f"{_SIMILARITY}:_maxsim_score_documents",
                    "li_plugins_sentence_transformers.chunks:score_documents",
                    bodies=_SCORE_DOCUMENTS,
                    explain="li_plugins_sentence_transformers.chunks:explain_score_documents",
                    also=_FILL,
                ),
                Target(
                    f"{_SIMILARITY}:_maxsim_score_pairs",
                    "li_plugins_sentence_transformers.chunks:score_pairs",
                    bodies=_SCORE_PAIRS,
                    explain="li_plugins_sentence_transformers.chunks:explain_score_pairs",
                    also=_FILL,
                ),
                Target(
                    f"{_SIMILARITY}:maxsim",
                    "li_plugins_sentence_transformers.similarity:maxsim",
                    bodies=_MAXSIM,
                    explain="li_plugins_sentence_transformers.similarity:explain_maxsim",
                    also={**_FILL, **_READ, f"{_SIMILARITY}:_maxsim_score_documents": list(_SCORE_DOCUMENTS.values())},
                ),
                Target(
                    f"{_SIMILARITY}:maxsim_pairwise",
                    "li_plugins_sentence_transformers.similarity:maxsim_pairwise",
                    bodies=_MAXSIM_PAIRWISE,
                    explain="li_plugins_sentence_transformers.similarity:explain_maxsim_pairwise",
                    also={**_FILL, **_READ, f"{_SIMILARITY}:_maxsim_score_pairs": list(_SCORE_PAIRS.values())},
                ),
                Target(
                    f"{_SCORING}:colbert_scores",
                    "li_plugins_sentence_transformers.scoring:colbert_scores",
                    bodies={"6.0.0 - 6.2.0": "560cda97"},
                    explain="li_plugins_sentence_transformers.scoring:explain_colbert_scores",
                    also={**_FILL, **_READ, f"{_SIMILARITY}:maxsim": list(_MAXSIM.values())},
                ),
                Target(
                    f"{_SCORING}:colbert_kd_scores",
                    "li_plugins_sentence_transformers.scoring:colbert_kd_scores",
                    bodies={"6.0.0 - 6.2.0": "803b95a2"},
                    explain="li_plugins_sentence_transformers.scoring:explain_colbert_kd_scores",
                    also={**_FILL, **_READ, f"{_SIMILARITY}:maxsim_pairwise": list(_MAXSIM_PAIRWISE.values())},
                ),
                Target(
                    f"{_XTR}:xtr_scores",
                    "li_plugins_sentence_transformers.retrieval:xtr_scores",
                    bodies=_XTR_SCORES,
                    explain="li_plugins_sentence_transformers.retrieval:explain_xtr_scores",
                    also=_RETRIEVAL,
                ),
                Target(
                    f"{_XTR}:xtr_kd_scores",
                    "li_plugins_sentence_transformers.retrieval:xtr_kd_scores",
                    bodies={"6.0.0 - 6.2.0": "5b7a032d"},
                    explain="li_plugins_sentence_transformers.retrieval:explain_xtr_kd_scores",
                    also={**_RETRIEVAL, f"{_XTR}:xtr_scores": list(_XTR_SCORES.values())},
                ),
            ],
        )
    ]
