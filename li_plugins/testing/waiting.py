"""Whether code waits for the device, as far as torch sees it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def waits_for_nothing() -> Iterator[None]:
    """Raise where torch would wait for the device; as before afterwards, whatever happens."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set(2)
        yield
    finally:
        _set(before)


def _set(mode: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode(mode)
