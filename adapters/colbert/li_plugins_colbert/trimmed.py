"""Passages through colbert-ai's encoder, no wider than they are, and on a CPU no more at a time than its cache holds.

The library pads all passages of a chunk to the longest of them, sorts them by length and cuts batches: those of short
passages are mostly padding, which the encoder computes and the mask then drops. And 64 passages at a time make tens of
megabytes of activations, which a CPU writes to memory and reads again for every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

WIDTHS = 8
"""A width is a multiple of this: tensor cores and fused attention take nothing else without padding."""
TOKENS_PER_THREAD = 1024
"""Most tokens of a batch on a CPU for each of its threads, padding too, if it has more than one passage: more cores
have more cache. Where a layer of MiniLM is widest, their activations take 6 MiB; on two cores 512 to 2,048 a thread are
as quick, 64 passages a quarter slower."""


def encode(checkpoint: Any, passages: list[str], bsize: int, *, showprogress: bool) -> tuple[Tensor, list[int]]:
    """Return the embeddings ``[T, dim]`` of passages one after the other, and how many tokens each has.

    As ``Checkpoint.docFromText(passages, bsize, keep_dims="flatten")`` without pooling; attention ignores padding, so
    that only its roundings change with the width.

    Parameters
    ----------
    checkpoint
        The library's ``Checkpoint``.
    passages
        At least one.
    bsize
        Most passages in a batch.
    showprogress
        Whether a bar counts the batches.
    """
    batches, order = checkpoint.doc_tokenizer.tensorize(passages, bsize=bsize)
    # on the host, like all that a tokenizer returns
    batches = [batch for ids, attention in batches for batch in _batches(ids, attention, checkpoint.device)]
    counts = [torch.tensor([sum(kept) for kept in checkpoint.mask(ids, checkpoint.skiplist)]) for ids, _ in batches]
    lengths = torch.cat(counts)[order]
    begins = torch.empty_like(lengths)
    begins[order] = lengths.cumsum(0) - lengths
    # All rows go where they belong at once: those of each batch for themselves would lie between what the encoder
    # allocates and frees, which the C library could not use again.
    rows, first = torch.empty(0), 0
    for (ids, attention), sizes in zip(tqdm(batches, disable=not showprogress), counts, strict=True):
        embeddings, mask = checkpoint.doc(ids, attention, keep_dims="return_mask")
        found = embeddings[mask.squeeze(-1)].cpu()
        if first == 0:
            rows = found.new_empty((int(lengths.sum()), found.shape[1]))
        places = begins[first : first + len(ids)].tolist()
        for begin, text in zip(places, found.split(sizes.tolist()), strict=True):
            rows[begin : begin + len(text)] = text
        first += len(ids)
    return rows, lengths.tolist()


def _batches(ids: Tensor, attention: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a batch ``[passages, length]`` into such as suit the device, and those to their longest passage."""
    together = len(ids)
    if device.type == "cpu":
        together = max(1, TOKENS_PER_THREAD * torch.get_num_threads() // _width(attention))
    for some_ids, some_attention in zip(ids.split(together), attention.split(together), strict=True):
        width = _width(some_attention)
        yield some_ids[:, :width], some_attention[:, :width]


def _width(attention: Tensor) -> int:
    """Return a width that holds the longest passage; a slice of it ends where the batch does."""
    return -(-(int((attention != 0).any(0).nonzero().max()) + 1) // WIDTHS) * WIDTHS
