"""Every test plans anew, and leaves neither plugins' kernels nor quarantines behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from li_plugins import api
from li_plugins.ops import dispatch
from li_plugins.ops.maxsim import gather, small

pytest.register_assert_rewrite("peaks", "refusal")


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
