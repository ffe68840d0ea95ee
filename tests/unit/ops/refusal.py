"""What an error about bad input has to say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from li_plugins.errors import BadInput


def check(call: Callable[[], object], asked: str) -> None:
    """Check that a call is refused with what was asked for, what was found and what to do."""
    with pytest.raises(BadInput) as caught:
        call()
    assert asked in caught.value.asked
    assert caught.value.found
    assert caught.value.remedy
