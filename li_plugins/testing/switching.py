"""A fixture that patches a library for every test but those that switch by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from typing import Any

import pytest

import li_plugins


def enabling(adapter: str, probe: str) -> Any:
    """Return an autouse fixture for a suite's ``conftest.py``.

    It enables the adapter once for all tests in a row, and disables it around a test marked ``switches`` and at the
    end. A refused patch is an error.

    Parameters
    ----------
    adapter
        Name of the adapter.
    probe
        ``"module:qualified.name"`` of one target: patched or not, it stands for all.
    """
    module, _, name = probe.partition(":")

    @pytest.fixture(autouse=True)
    def enabled(request: pytest.FixtureRequest) -> Iterator[None]:
        if request.node.get_closest_marker("switches"):
            li_plugins.disable_all()
            yield
            li_plugins.disable_all()
            return
        function = attrgetter(name)(import_module(module))
        if li_plugins.original(function) is function:
            li_plugins.enable(adapter, strict=True)
            request.session.config.add_cleanup(li_plugins.disable_all)
        yield

    return enabled
