"""How far an encoder's layers are apart in two captured builds, for the same texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from li_plugins.errors import BadInput
from li_plugins.index_diff.capture import Capture
from li_plugins.index_diff.recorded import notes

if TYPE_CHECKING:
    from rich.console import RenderableType

TOLERANCE = 1e-4
"""Greatest difference, relative to a layer's typical number, that rounding in float32 makes in a deep encoder."""


@dataclass(frozen=True)
class LayerDrift:
    """One layer: what its outputs are apart, over the tokens that are no padding.

    Parameters
    ----------
    name
        ``embeddings``, ``layer 0`` and so on, ``projection``.
    max_abs, mean_abs
        Of the difference of two numbers.
    relative
        ``max_abs`` over the root mean square of A's numbers.
    mean_cosine, least_cosine
        Between a token's two vectors.
    """

    name: str
    max_abs: float
    mean_abs: float
    relative: float
    mean_cosine: float
    least_cosine: float

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {
            "layer": self.name,
            "max_abs": self.max_abs,
            "mean_abs": self.mean_abs,
            "relative": self.relative,
            "mean_cosine": self.mean_cosine,
            "least_cosine": self.least_cosine,
        }


@dataclass(frozen=True)
class LayersReport:
    """The layers of two builds, from the embeddings to the projection.

    Parameters
    ----------
    a, b
        The index folders.
    layers
        One for each that both have.
    other_weights
        Names of the weights that are not the same, or in one encoder only.
    tolerance
        Greatest relative difference of the same.
    notes
        What the environments have apart.
    """

    a: str
    b: str
    layers: tuple[LayerDrift, ...]
    other_weights: tuple[str, ...]
    tolerance: float
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether weights are the same and layers within tolerance."""
        return not self.other_weights and self.first is None

    @property
    def first(self) -> LayerDrift | None:
        """The first layer beyond tolerance."""
        return next((layer for layer in self.layers if not layer.relative <= self.tolerance), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, ready for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "tolerance": self.tolerance,
            "layers": [layer.to_dict() for layer in self.layers],
            "other_weights": list(self.other_weights),
            "notes": list(self.notes),
        }

    def verdict(self) -> list[str]:
        """Return what the layers come to, in a line or two."""
        if self.other_weights:
            named = ", ".join(self.other_weights[:3])
            more = f" and {len(self.other_weights) - 3} more" if len(self.other_weights) > 3 else ""
            return [f"The weights are not the same: {named}{more}. Drift says nothing about torch."]
        if not any(layer.max_abs for layer in self.layers):
            return ["The same weights, the same numbers in each layer."]
        started = next(layer for layer in self.layers if layer.max_abs)
        lines = [f"The same weights. Drift begins in {started.name}."]
        if self.first is None:
            return [*lines, f"Within {self.tolerance:g} of each layer's typical number: rounding."]
        return [*lines, f"The first beyond {self.tolerance:g} of a layer's typical number: {self.first.name}."]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[RenderableType]:
        yield f"A  {escape(self.a)}"
        yield f"B  {escape(self.b)}\n"
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("layer", no_wrap=True)
        for title in ("max |a-b|", "mean |a-b|", "max / rms", "mean cosine", "least cosine"):
            table.add_column(title, justify="right")
        for layer in self.layers:
            colour = "green" if not layer.max_abs else "cyan" if layer.relative <= self.tolerance else "red"
            table.add_row(
                escape(layer.name),
                f"{layer.max_abs:.2e}",
                f"{layer.mean_abs:.2e}",
                f"[{colour}]{layer.relative:.2e}[/]",
                f"{layer.mean_cosine:.8f}",
                f"{layer.least_cosine:.8f}",
            )
        yield table
        yield ""
        yield from (escape(line) for line in self.verdict())
        yield from (f"[dim]{escape(note)}[/]" for note in self.notes)


def compare_layers(a: str, b: str, tolerance: float = TOLERANCE) -> LayersReport:
    """Compare the hidden states that two builds under ``capture`` kept, of the same texts.

    Raises
    ------
    BadInput
        When a folder has no capture, or the two encoded other texts.
    """
    captures = Capture(a), Capture(b)
    mine, theirs = (capture.layers for capture in captures)
    for name in ("input_ids", "attention_mask"):
        if not torch.equal(mine[name], theirs[name]):
            raise BadInput(
                f"{a} and {b} kept hidden states of the same texts",
                f"{name} of shapes {list(mine[name].shape)} and {list(theirs[name].shape)} that are not the same",
                "build both of the same passages, with the same tokenizer and --texts",
            )
    tokens = mine["attention_mask"].bool()
    names = [name for name in mine["layers"] if name in theirs["layers"]]
    if len(names) != len(mine["layers"]) or len(names) != len(theirs["layers"]):
        raise BadInput(
            "the two encoders have the same layers",
            f"{len(mine['layers'])} and {len(theirs['layers'])}, {len(names)} of them in both",
            "build both with the same model",
        )
    layers = tuple(_drift(name, mine["layers"][name][tokens], theirs["layers"][name][tokens]) for name in names)
    other = _other(mine["weights"], theirs["weights"])
    return LayersReport(a, b, layers, other, tolerance, notes(*captures))


def _drift(name: str, a: Tensor, b: Tensor) -> LayerDrift:
    if a.shape != b.shape:
        raise BadInput(f"{name} has one width in both", f"{list(a.shape)} and {list(b.shape)}", "use the same model")
    a, b = a.double(), b.double()
    distance = (a - b).abs()
    # the part of unequal vectors beyond 1 is rounding
    cosine = cosine_similarity(a, b, dim=-1).clamp(-1, 1)
    greatest, scale = float(distance.max()), float(a.square().mean().sqrt())
    relative = greatest / scale if scale else float(greatest > 0)
    return LayerDrift(name, greatest, float(distance.mean()), relative, float(cosine.mean()), float(cosine.min()))


def _other(mine: Mapping[str, str], theirs: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
