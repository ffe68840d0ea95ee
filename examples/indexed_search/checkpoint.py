"""MiniLM as a checkpoint of colbert-ai, saved as a folder that both sides load."""

from __future__ import annotations

from pathlib import Path

import torch
from colbert.infra import ColBERTConfig
from colbert.modeling.colbert import ColBERT
from retrieval_demo.model import DOCUMENT_LENGTH, EMBEDDING_SIZE, SEED, bundled_weights

QUERY_LENGTH = 32
FINISHED = "artifact.metadata"
"""What colbert-ai writes last."""


def save_checkpoint(folder: Path) -> Path:
    """Give MiniLM an orthogonal head of 128 dimensions, from a fixed seed, unless the folder has it already.

    Raises
    ------
    DemoError
        The weights are missing, or not the expected ones.
    """
    if (folder / FINISHED).is_file():
        return folder
    base = str(bundled_weights())
    settings = ColBERTConfig(checkpoint=base, dim=EMBEDDING_SIZE, doc_maxlen=DOCUMENT_LENGTH, query_maxlen=QUERY_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = ColBERT(base, settings)
        torch.nn.init.orthogonal_(model.linear.weight)
        model.save(str(folder))
    return folder
