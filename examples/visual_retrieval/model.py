"""A ColModernVBert of a few hundred thousand parameters, built from configuration: no model hub is needed."""

from __future__ import annotations

import torch
from colpali_engine.models import ColModernVBert
from torch import Tensor
from transformers import ModernVBertConfig

from visual_retrieval.pages import PADDING, SIDE

PATCH, SHUFFLE = 8, 2
GRID = SIDE // PATCH // SHUFFLE
"""Vectors of a page, either way."""
WIDTH = 96


def build(words: int, seed: int) -> ColModernVBert:
    """Return an untrained model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    layers = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ModernVBertConfig(
        text_config={"model_type": "modernbert", "vocab_size": words + 1, "pad_token_id": PADDING, **layers},
        vision_config={"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH, **layers},
        image_token_id=words,
        pixel_shuffle_factor=SHUFFLE,
    )
    return ColModernVBert(config).eval()  # no dropout: both sides see the same


def encode_queries(model: ColModernVBert, queries: Tensor) -> Tensor:
    """Return unit vectors ``[queries, words, 128]``, zero for padding."""
    return model(input_ids=queries, attention_mask=(queries != PADDING).long())


def encode_pages(model: ColModernVBert, pictures: Tensor) -> Tensor:
    """Return unit vectors ``[pages, GRID * GRID, 128]``."""
    tokens = torch.full((len(pictures), GRID * GRID), model.config.image_token_id)
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=pictures[:, None])
