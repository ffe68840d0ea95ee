"""Two indexes, written and compared."""

from __future__ import annotations

import pytest

from li_plugins.index_diff.comparison import compare


@pytest.fixture
def compared(tmp_path):
    """Return a function that writes two indexes and compares them."""

    def run(a, b, **options):
        return compare(a.write(tmp_path / "a"), b.write(tmp_path / "b"), **options)

    return run
