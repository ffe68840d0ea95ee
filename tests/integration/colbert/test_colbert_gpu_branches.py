"""The branches for a GPU on a machine without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu_cases import *  # noqa: F403 - its tests are collected here
from gpu_codec_cases import *  # noqa: F403 - likewise
from li_plugins_colbert.residency import Ragged, Stored
from pretended_gpu import pretended_gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is seen: test_colbert_cuda.py has these cases")


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with pretended_gpu():
        yield


@pytest.mark.parametrize("on_host", [("codes",), ("residuals",), ("codes", "residuals"), ()])
def test_rows_of_what_stays_on_the_host(on_host: tuple[str, ...]) -> None:
    lengths = torch.randint(0, 9, (20,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    parts = {"codes": torch.arange(200, dtype=torch.int32), "residuals": torch.randint(0, 256, (200, 4)).byte()}
    # to torch this is another device than the one that the parts are on
    device = torch.device("cpu", 0)
    there = {name: part if name in on_host else part.to(device) for name, part in parts.items()}
    where = device if on_host else torch.device("cpu")
    stored = Stored((), where, *there.values(), offsets, Ragged(offsets, offsets), "")
    asked = torch.tensor([7, 3, 19, 7])
    codes, residuals, begins, documents = stored.tokens(asked, residuals=True)
    for place, pid in zip(documents.tolist(), asked.tolist(), strict=True):
        mine, theirs = slice(*begins[place : place + 2]), slice(*offsets[pid : pid + 2])
        assert torch.equal(codes[mine], parts["codes"][theirs])
        assert torch.equal(residuals[mine], parts["residuals"][theirs])
