"""colbert-ai's embeddings of tokens, with the mask of padding and skipped tokens in one comparison.

The library asks the host for each token, and the host for the device: a list of lists that it makes a tensor of.
"""

from __future__ import annotations

from typing import Any

import torch
from colbert.modeling import colbert
from torch import Tensor
from torch.nn.functional import normalize

from li_plugins.api import Decline

INTEGERS = (torch.int64, torch.int32, torch.int16)


def query(self: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor | Decline:
    """Return unit embeddings ``[texts, length, dim]`` of queries; of padding, zeros."""
    refusal = _unencoded(self, input_ids, [])
    return refusal or _embedded(self, input_ids, attention_mask, [])[0]


def explain_query(self: Any, input_ids: Tensor, attention_mask: Tensor) -> object:
    """Say where the mask of a query would be made."""
    return _unencoded(self, input_ids, []) or f"one torch.isin on {self.device}"


def doc(self: Any, input_ids: Tensor, attention_mask: Tensor, keep_dims: Any = True) -> Any:
    """Return unit embeddings ``[texts, length, dim]`` of documents; of padding and skipped tokens, zeros.

    With ``keep_dims="return_mask"`` also which tokens are neither, ``[texts, length, 1]``; with ``False`` a list of
    these tokens' embeddings on the host.
    """
    skiplist = getattr(self, "skiplist", None)
    refusal = _unencoded(self, input_ids, skiplist)
    if refusal or keep_dims not in (True, False, "return_mask"):
        return refusal or Decline(f"keep_dims={keep_dims!r}: colbert-ai refuses it")
    embeddings, kept = _embedded(self, input_ids, attention_mask, skiplist)
    if self.use_gpu:
        embeddings = embeddings.half()
    if keep_dims == "return_mask":
        return embeddings, kept
    if keep_dims is not False:  # 0 is as good as True
        return embeddings
    return [text[real] for text, real in zip(embeddings.cpu(), kept.squeeze(-1).cpu(), strict=True)]


def explain_doc(self: Any, input_ids: Tensor, attention_mask: Tensor, keep_dims: Any = True) -> object:
    """Say where the mask of a document would be made."""
    return _unencoded(self, input_ids, getattr(self, "skiplist", None)) or f"one torch.isin on {self.device}"


def mask(self: Any, input_ids: Tensor, skiplist: Any) -> list[list[bool]] | Decline:
    """Return for each token of ``input_ids [texts, length]`` whether it is neither padding nor in ``skiplist``."""
    return _unmasked(self, input_ids, skiplist) or _kept(self, input_ids.cpu(), skiplist).tolist()


def explain_mask(self: Any, input_ids: Tensor, skiplist: Any) -> object:
    """Say whether ``mask`` is one comparison."""
    return _unmasked(self, input_ids, skiplist) or f"one torch.isin with up to {len(skiplist) + 1} tokens on the CPU"


def _embedded(model: Any, input_ids: Tensor, attention_mask: Tensor, skiplist: Any) -> tuple[Tensor, Tensor]:
    """Return embeddings, and which tokens are kept, ``[texts, length, 1]`` bool."""
    input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)
    embeddings = model.linear(model.bert(input_ids, attention_mask=attention_mask)[0])
    kept = _kept(model, input_ids, skiplist)[..., None]
    return normalize(embeddings * kept.float(), p=2, dim=2), kept


def _kept(model: Any, input_ids: Tensor, skiplist: Any) -> Tensor:
    # the keys of a skiplist are the punctuation marks and their ids; only an id can equal a token
    skipped = [token for token in (*skiplist, model.pad_token) if isinstance(token, int)]
    tokens = torch.tensor(skipped, dtype=torch.int64).to(input_ids.device, non_blocking=True)
    return torch.isin(input_ids.long(), tokens, invert=True)


def _unencoded(model: Any, input_ids: Any, skiplist: Any) -> Decline | None:
    if not isinstance(model, colbert.ColBERT):
        return Decline(f"called on {type(model).__name__}, which is no ColBERT")
    if getattr(model.mask, "__func__", None) is not colbert.ColBERT.mask:
        return Decline(f"mask of {type(model).__name__} is not ColBERT's")
    return _unmasked(model, input_ids, skiplist)


def _unmasked(model: Any, input_ids: Any, skiplist: Any) -> Decline | None:
    if type(input_ids) is not Tensor or input_ids.dim() != 2 or input_ids.dtype not in INTEGERS:
        return Decline("input_ids are no plain tensor [texts, length] of int64, int32 or int16")
    if type(skiplist) not in (list, dict, set, tuple):
        return Decline(f"skiplist of type {type(skiplist).__name__}: needs a list, a set or a dictionary")
    tokens = (*skiplist, getattr(model, "pad_token", None))
    if not all(token is None or isinstance(token, (str, int)) for token in tokens):
        return Decline("skiplist holds something else than ids and the marks that they stand for")
    return None
