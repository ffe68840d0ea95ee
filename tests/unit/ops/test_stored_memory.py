"""The memory of the codec, of assignment and of scores of stored documents: some blocks beyond inputs and outputs."""

from __future__ import annotations

import peaks
import pytest

LIMITS = {
    "the matrix": ("(rows[part].float() @ centroids.T).max(1)", (256, 400)),
    # one tile of 64 MiB, and a block of rows
    "assign": ("assign(rows[part], centroids)", (0, 100)),
    "compress": ("compress(rows[part], centroids, cutoffs, nbits=2)", (0, 110)),
    "the buckets": ("torch.bucketize(many[part].float(), cutoffs)", (120, 300)),
    # with bytes of 3 MiB
    "binarize": ("binarize(many[part], cutoffs, nbits=2)", (0, 30)),
    "the embeddings": ("decompress(codes, residuals, centroids, weights, nbits=2)", (48, 120)),
    # the embeddings would be 48 MiB, the similarities 96 MiB
    "residual": (
        "residual_maxsim(queries[part], codes, residuals, centroids, weights, offsets, nbits=2, least=0.0)",
        (0, 45),
    ),
    # the similarities of one query would be 12 MiB
    "code": ("code_maxsim(scores[part], codes, offsets, least=-9999.0)", (0, 45)),
}
"""Steps, and between how many MiB their peak lies; some show that the measurement sees what it is for."""

SETUP = """
import torch
from li_plugins.ops import assign, binarize, code_maxsim, compress, decompress, residual_maxsim

rows, many, centroids = torch.randn(16384, 128).half(), torch.randn(98304, 128).half(), torch.randn(4096, 128)
cutoffs, weights = torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([-1.0, -0.2, 0.2, 1.0])
codes, residuals = torch.randint(0, 4096, (98304,)).int(), torch.randint(0, 256, (98304, 32)).to(torch.uint8)
offsets, queries, scores = torch.arange(1025) * 96, torch.randn(8, 32, 128), torch.randn(8, 4096, 32)
"""


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return peaks.measured(SETUP, LIMITS)


@peaks.measurable
@pytest.mark.parametrize("name", LIMITS)
def test_peak(name: str, found: dict[str, float]) -> None:
    peaks.check(name, found, LIMITS)
