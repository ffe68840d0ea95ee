"""Every test plans anew, and leaves neither plugins' kernels nor quarantines behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from li_plugins import api
from li_plugins.ops import dispatch, recipes
from li_plugins.ops.maxsim import gather, small

if TYPE_CHECKING:
    from recorded_calls import Adds

pytest.register_assert_rewrite("peaks", "recorded_calls", "refusal")


@pytest.fixture(autouse=True)
def _fresh_plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("LI_PLUGINS_BACKEND", "LI_PLUGINS_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LI_PLUGINS_TUNING", "0")
    monkeypatch.setattr(api, "kernel_providers", [])
    monkeypatch.setattr(api, "kernel_rankers", [])
    dispatch.reset()
    yield
    dispatch.reset()


@pytest.fixture(params=["blocked", "blocked, small", "reference"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kernel of plain torch, behind the public functions; one of them takes small problems another way."""
    name = request.param.partition(",")[0]
    monkeypatch.setenv("LI_PLUGINS_BACKEND", name)
    if request.param == "blocked":
        monkeypatch.setattr(small, "SIMILARITIES", 0)
        monkeypatch.setattr(gather, "ADDED", 0)
    dispatch.reset()
    return name


@pytest.fixture
def adds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Adds]:
    """Yield the compiled kernel of ``recorded_calls``, on a CPU that counts as the current GPU."""
    import torch
    from recorded_calls import STREAM, Adds

    compiled = Adds()
    monkeypatch.setattr(recipes, "RECORDED", 2)
    monkeypatch.setattr(recipes, "_is_here", lambda device: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM, raising=False)
    recipes.forget()
    yield compiled
    recipes.forget()
