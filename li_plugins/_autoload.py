"""The environment gate that ``import torch`` calls: the standard library only, never raises."""

from __future__ import annotations


def main() -> None:
    """Enable the adapters that ``LI_PLUGINS`` names, if it is set."""
