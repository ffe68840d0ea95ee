"""colbert-ai's inverted file, from embeddings in the order of their centroids to the passages of each centroid."""

from __future__ import annotations

import os
from typing import Any

import torch
from colbert.indexing import utils
from torch import Tensor

from li_plugins.api import Decline
from li_plugins_colbert import files

INTEGERS = (torch.int64, torch.int32)
MOST_EMBEDDINGS = 1 << 22
"""How many embeddings are looked at together: some 100 MiB at a time, whatever the size of the index."""


def optimize_ivf(
    orig_ivf: Tensor, orig_ivf_lengths: Tensor, index_path: str, verbose: int = 3
) -> tuple[Tensor, Tensor] | Decline:
    """Return and save the passages of each centroid, ascending and each once, and how many they are.

    ``orig_ivf`` has the embeddings of one centroid after the other, ``orig_ivf_lengths [K]`` how many each has. The
    passages are int32, ``[n]``, behind the last centroid's as many zeros as the library puts there; the counts int64.
    """
    refusal = _unserved(orig_ivf, orig_ivf_lengths)
    if refusal:
        return refusal
    if verbose > 1:
        utils.print_message("#> Optimizing IVF to store map from centroids to list of pids..")
        utils.print_message("#> Building the emb2pid mapping..")
    doclens = torch.tensor(utils.flatten(utils.load_doclens(index_path, flatten=False)), dtype=torch.int64)
    emb2pid = torch.arange(len(doclens), dtype=torch.int32).repeat_interleave(doclens)
    if verbose > 1:
        utils.print_message("len(emb2pid) =", len(emb2pid))
    ivf, lengths = passages_of_centroids(orig_ivf, orig_ivf_lengths, emb2pid, len(doclens))
    optimized = os.path.join(index_path, "ivf.pid.pt")
    files.save((ivf, lengths), optimized)
    if verbose > 1:
        utils.print_message(f"#> Saved optimized IVF to {optimized}")
        original = os.path.join(index_path, "ivf.pt")
        if os.path.exists(original):
            utils.print_message(f'#> Original IVF at path "{original}" can now be removed')
    return ivf, lengths


def explain_optimize_ivf(orig_ivf: Tensor, orig_ivf_lengths: Tensor, index_path: str, verbose: int = 3) -> object:
    """Say in how many steps the passages of the centroids would be found, or why colbert-ai's own loop would run."""
    refusal = _unserved(orig_ivf, orig_ivf_lengths)
    return refusal or f"one sort for each {MOST_EMBEDDINGS} of {len(orig_ivf)} embeddings on the CPU"


def passages_of_centroids(embeddings: Tensor, lengths: Tensor, emb2pid: Tensor, passages: int) -> tuple[Tensor, Tensor]:
    """Return the passages of each centroid with the library's padding, and how many each has; see ``optimize_ivf``.

    Parameters
    ----------
    embeddings
        Those of one centroid after the other, ``[T]``. As slices do, the last centroids have what there is.
    lengths
        How many each centroid has, ``[K]``.
    emb2pid
        The passage of each embedding, int32.
    passages
        How many passages there are.
    """
    ends = lengths.long().cumsum(0).clamp_(max=len(embeddings))
    found, counts = [], torch.zeros(len(lengths), dtype=torch.int64)
    first = start = 0
    with utils.tqdm.tqdm(total=len(lengths)) as progress:
        while first < len(lengths):
            # as many whole centroids as fit, and at least one
            last = max(int(torch.searchsorted(ends, start + MOST_EMBEDDINGS, right=True)), first + 1)
            stop = int(ends[last - 1])
            owners = torch.arange(last - first).repeat_interleave(
                ends[first:last].diff(prepend=ends.new_tensor([start]))
            )
            # passages of a centroid come together and ascend when centroids are sorted first
            keys = owners * passages + emb2pid[embeddings[start:stop]]
            if not bool((keys.diff() >= 0).all()):
                keys = keys.sort().values
            keys = keys.unique_consecutive()
            counts[first:last] = torch.bincount(keys // max(passages, 1), minlength=last - first)
            found.append((keys % max(passages, 1)).int())
            progress.update(last - first)
            first, start = last, stop
    longest = int(counts.max())
    # every centroid may be looked up with the stride of the longest, the last one too
    padding = [torch.zeros(longest, dtype=torch.int32)] if counts[-1] < longest else []
    return torch.cat([*found, *padding]), counts


def _unserved(embeddings: Any, lengths: Any) -> Decline | None:
    for name, tensor in (("orig_ivf", embeddings), ("orig_ivf_lengths", lengths)):
        if type(tensor) is not Tensor or tensor.dim() != 1 or tensor.dtype not in INTEGERS or tensor.is_cuda:
            return Decline(f"{name} is no plain tensor of one dimension, int64 or int32, on the CPU")
    if not len(lengths):
        return Decline("no centroid: colbert-ai's own error is the answer")
    return None
