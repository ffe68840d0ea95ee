"""A way to patch functions of fake libraries that gives all of them back when the test ends."""

from __future__ import annotations

import pytest

from li_plugins.api import Target
from li_plugins.errors import RestoreRefused
from li_plugins.host import patch


@pytest.fixture
def patched():
    """Patch ``path`` with a function and return the record; keywords are the target's, or ``apply``'s own."""
    records = []

    def patched(path, replacement, *, adapter="fake", untested=False, on_decline=lambda *_: None, **target):
        asked = Target(path, "fake_replacements:it", **target)
        record = patch.apply(adapter, asked, replacement, version="1.5", untested=untested, on_decline=on_decline)
        records.append(record)
        return record

    yield patched
    for record in reversed(records):
        try:
            patch.undo(record)
        except RestoreRefused:  # the test took the function over and its module is about to be forgotten
            patch._live = tuple(other for other in patch._live if other is not record)
