"""``score_multi_vector`` as packed MaxSim: every passage moves once, none is padded, memory is bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments, ragged
from li_plugins.ops.arguments import Request
from li_plugins_colpali import _requests

_processing: Any = import_module("colpali_engine.utils.processing_utils")

FLOOR_VARIABLE = "LI_PLUGINS_COLPALI_FLOOR"


def score_multi_vector(
    qs: Tensor | list[Tensor],
    ps: Tensor | list[Tensor],
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> Tensor | Decline:
    """Score every query against every passage: ``[queries, passages]``, float32 on the CPU.

    ``batch_size`` does not bound memory here. It says which passages the library pads together, and a padded passage
    scores at least 0 for each query token.
    """
    scores = ragged.scores(_launches(qs, ps, batch_size, device))
    return scores if isinstance(scores, Decline) else scores.cpu()


def explain_score_multi_vector(
    qs: Tensor | list[Tensor],
    ps: Tensor | list[Tensor],
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> object:
    """Say which kernel ``score_multi_vector`` would use, or why the library's own code would run."""
    return ragged.explained(_launches(qs, ps, batch_size, device))


def _launches(qs: Any, ps: Any, batch_size: Any, device: Any) -> Iterator[Request | Decline]:
    refusal = _requests.named_backend()
    if refusal is None and hasattr(_processing, "maxsim_inbatch"):
        refusal = arguments.foreign(_processing.maxsim_inbatch, "maxsim_inbatch", "colpali_engine")
    if refusal:
        return iter([refusal])
    return ragged.requests(
        qs,
        ps,
        batch_size=batch_size,
        device=device or _processing.get_torch_device("auto"),
        out_dtype=torch.float32,
        floored=os.environ.get(FLOOR_VARIABLE, "1").strip().lower() not in ("0", "false", "no", "off"),
    )
