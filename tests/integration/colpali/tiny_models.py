"""Visual retrievers of some ten thousand parameters, built from configuration, and batches of texts and pages."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

IMAGE = 90
"""Token that stands for a patch of a page; words are lower."""
WORDS = 80
SIDE, PATCH = 16, 4
"""Pixels of a page and of a patch."""

TEXT = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip


class Tiny(NamedTuple):
    """A model and how its pages come in."""

    model: torch.nn.Module
    page_tokens: int
    """Patches of a page after merging."""
    pixels: Callable[[Tensor, Tensor], dict[str, Tensor]]
    """Pages ``[B, 3, SIDE, SIDE]`` as the model's arguments, beside the tokens ``[B, L]`` that stand for them."""

    def encode(self, tokens: Tensor, pages: Tensor | None = None) -> Tensor:
        """Return unit vectors ``[B, L, 128]``, zero where ``tokens [B, L]`` are 0."""
        more: dict[str, Any] = {}
        if pages is not None:
            count = len(pages)
            tokens = torch.cat([torch.full((count, self.page_tokens), IMAGE), tokens], 1)
            more = self.pixels(pages, tokens)
        arguments = {"input_ids": tokens, "attention_mask": (tokens != 0).long(), **more}
        device = next(self.model.parameters()).device
        return self.model(**{name: value.to(device) for name, value in arguments.items()})


def colqwen2() -> Tiny:
    from colpali_engine.models import ColQwen2
    from transformers import Qwen2VLConfig, Qwen2VLModel

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {
        "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "mlp_ratio": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": rope, "max_position_embeddings": 256},
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=91,
        vision_end_token_id=92,
        video_token_id=93,
    )
    edge = SIDE // PATCH
    # Later releases of transformers ask for them.
    has_kinds = "mm_token_type_ids" in signature(Qwen2VLModel.forward).parameters

    def pixels(pages: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        patches = pages.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3)
        kinds = {"mm_token_type_ids": (tokens == IMAGE).int()} if has_kinds else {}
        return {
            "pixel_values": patches.flatten(1, 2).repeat(1, 1, 2),
            "image_grid_thw": torch.tensor([[1, edge, edge]] * len(pages)),
            **kinds,
        }

    return Tiny(ColQwen2(config), (edge // 2) ** 2, pixels)


def colpali() -> Tiny:
    from colpali_engine.models import ColPali
    from transformers import PaliGemmaConfig

    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", "head_dim": 16, "num_key_value_heads": 2, **TEXT},
        vision_config={"model_type": "siglip_vision_model", "projection_dim": 32, **VISION},
        image_token_id=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return Tiny(ColPali(config), (SIDE // PATCH) ** 2, lambda pages, _: {"pixel_values": pages})


def colidefics3() -> Tiny:
    from colpali_engine.models import ColIdefics3
    from transformers import Idefics3Config

    text = {"model_type": "llama", "pad_token_id": 0, "num_key_value_heads": 2, **TEXT}
    config = Idefics3Config(text_config=text, vision_config=VISION, image_token_id=IMAGE, scale_factor=2)
    return Tiny(ColIdefics3(config), (SIDE // PATCH // 2) ** 2, lambda pages, _: {"pixel_values": pages[:, None]})


def colmodernvbert() -> Tiny:
    from colpali_engine.models import ColModernVBert
    from transformers import ModernVBertConfig

    config = ModernVBertConfig(
        text_config={"model_type": "modernbert", "pad_token_id": 0, **TEXT},
        vision_config={"model_type": "siglip_vision_model", **VISION},
        image_token_id=IMAGE,
        pixel_shuffle_factor=2,
    )
    return Tiny(ColModernVBert(config), (SIDE // PATCH // 2) ** 2, lambda pages, _: {"pixel_values": pages[:, None]})


MODELS = {maker.__name__: maker for maker in (colqwen2, colpali, colidefics3, colmodernvbert)}


def make(name: str, precise: bool = False) -> Tiny:
    """Return a model with the same weights every time."""
    torch.manual_seed(0)
    tiny = MODELS[name]()
    # PaliGemma asks for more arguments in training mode; without dropout the modes are one.
    tiny.model.eval()
    return tiny._replace(model=tiny.model.double() if precise else tiny.model)
