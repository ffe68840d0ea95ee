"""How the report writes its figures."""

import pytest
from retrieval_demo.report import duration, ratio, size


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.05, "same"), (0.95, "same"), (2.5, "2.5x faster"), (0.25, "4.0x slower"), (81.4, "81x faster")],
)
def test_ratios(value, expected):
    assert ratio(value, "faster", "slower") == expected


@pytest.mark.parametrize(("seconds", "expected"), [(12.345, "12.3 s"), (0.0123, "12.3 ms"), (123.4, "123 s")])
def test_durations(seconds, expected):
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(512, "512 B"), (8 * 2**20, "8 MiB"), (11 * 2**30, "11 GiB"), (1010 * 2**20, "0.986 GiB")]
)
def test_sizes(count, expected):
    assert size(count) == expected
