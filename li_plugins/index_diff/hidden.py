"""Hidden states of an encoder's first batch, layer by layer, by forward hooks that take themselves off."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LISTS = ("layer", "layers", "h", "block", "blocks")
"""Names that encoders give the list of their layers."""


def watch_layers(checkpoint: Any, texts: int, path: Path) -> None:
    """Write the hidden states of the first ``texts`` texts of the next batch that ``checkpoint`` encodes.

    Parameters
    ----------
    checkpoint
        colbert-ai's ``Checkpoint``: its ``bert`` is the encoder, its ``linear`` the projection behind it.
    texts
        How many; 0: nothing is written.
    path
        The file: ``input_ids`` and ``attention_mask`` ``[texts, length]``, ``layers`` by name from the embeddings to
        the projection, each ``[texts, length, width]``, and the sha256 of each of the ``weights``.
    """
    if not texts:
        return
    encoder = checkpoint.bert
    found: dict[str, Any] = {"layers": {}}
    handles: list[Any] = []

    def begun(module: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        ids = arguments[0] if arguments else options["input_ids"]
        mask = options.get("attention_mask", arguments[1] if len(arguments) > 1 else torch.ones_like(ids))
        found.update(input_ids=_first(ids), attention_mask=_first(mask), layers={})

    def _first(tensor: Tensor) -> Tensor:
        return tensor[:texts].detach().cpu().clone()

    def keep(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            # a layer of transformers 4 returns a tuple, one of 5 the tensor
            found["layers"][name] = _first(output if isinstance(output, Tensor) else output[0])

        return hook

    def ended(module: Any, arguments: Any, output: Any) -> None:
        found["layers"]["projection"] = _first(output)
        for handle in handles:
            handle.remove()
        found["weights"] = weights(checkpoint)
        torch.save(found, path)

    handles.append(encoder.register_forward_pre_hook(begun, with_kwargs=True))
    for name, module in encoder.named_modules():
        if name == "embeddings":
            handles.append(module.register_forward_hook(keep("embeddings")))
    handles += [layer.register_forward_hook(keep(f"layer {number}")) for number, layer in enumerate(_layers(encoder))]
    handles.append(checkpoint.linear.register_forward_hook(ended))


def weights(module: torch.nn.Module) -> dict[str, str]:
    """Return the sha256 of each parameter's and buffer's bytes, by name."""
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in module.state_dict().items()
    }


def _layers(encoder: torch.nn.Module) -> list[torch.nn.Module]:
    lists = [
        list(module)
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.ModuleList) and name.rpartition(".")[2] in LISTS
    ]
    return max(lists, key=len, default=[])
