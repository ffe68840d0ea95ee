"""sentence-transformers' ``maxsim`` and ``maxsim_pairwise``, which models, evaluators and their scores go through."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from li_plugins.api import Decline
from li_plugins.ops import arguments
from li_plugins_sentence_transformers import _launches


def maxsim(
    a: list | np.ndarray | Tensor,
    b: list | np.ndarray | Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: str | torch.device | None = None,
) -> Tensor | Decline:
    """Score every query against every document: ``[A, Lq, d]`` and ``[B, Ld, d]``, or ragged lists, to ``[A, B]``."""
    launches = _launches.cross(a, b, a_mask, b_mask, chunk_elements, device)
    scores = _launches.joined(launches, _launches.home(a, b))
    if isinstance(scores, Decline) or not length_normalize:
        return scores
    return _launches.normalized(scores, a, a_mask)


def explain_maxsim(
    a: list | np.ndarray | Tensor,
    b: list | np.ndarray | Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: str | torch.device | None = None,
) -> object:
    """Say which kernel ``maxsim`` would use, or why the library's own code would run."""
    return _launches.explained(_launches.cross(a, b, a_mask, b_mask, chunk_elements, device))


def maxsim_pairwise(
    a: list | np.ndarray | Tensor,
    b: list | np.ndarray | Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: str | torch.device | None = None,
) -> Tensor | Decline:
    """Score the first query against the first document and so on, padded or ragged, to ``[n]``."""
    launches = _launches.pairwise(a, b, a_mask, b_mask, chunk_elements, device)
    scores = _launches.joined(launches, _launches.home(a, b))
    if isinstance(scores, Decline):
        return scores
    scores = arguments.flat(scores)  # a padded pair is a query with one candidate
    return _launches.normalized(scores, a, a_mask) if length_normalize else scores


def explain_maxsim_pairwise(
    a: list | np.ndarray | Tensor,
    b: list | np.ndarray | Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: str | torch.device | None = None,
) -> object:
    """Say which kernel ``maxsim_pairwise`` would use, or why the library's own code would run."""
    return _launches.explained(_launches.pairwise(a, b, a_mask, b_mask, chunk_elements, device))
