"""Every test plans anew, and leaves neither plugins' kernels nor quarantines behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from li_plugins import api
from li_plugins.ops import dispatch


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


@pytest.fixture(params=["blocked", "reference"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kernel of plain torch, behind the public functions."""
    monkeypatch.setenv("LI_PLUGINS_BACKEND", request.param)
    dispatch.reset()
    return request.param
