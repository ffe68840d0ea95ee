"""The memory of the codec, of assignment and of scores of stored documents: some blocks beyond inputs and outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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

CODE = """
import json, sys
from pathlib import Path
import torch
from li_plugins.ops import assign, binarize, code_maxsim, compress, decompress, residual_maxsim

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

def peak_of(step):
    step(slice(4))  # what threads and libraries allocate once
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    step(slice(None))
    return status("VmHWM") - before

rows, many, centroids = torch.randn(16384, 128).half(), torch.randn(98304, 128).half(), torch.randn(4096, 128)
cutoffs, weights = torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([-1.0, -0.2, 0.2, 1.0])
codes, residuals = torch.randint(0, 4096, (98304,)).int(), torch.randint(0, 256, (98304, 32)).to(torch.uint8)
offsets, queries, scores = torch.arange(1025) * 96, torch.randn(8, 32, 128), torch.randn(8, 4096, 32)
steps = json.loads(sys.argv[1])
print(json.dumps({name: peak_of(eval("lambda part: " + step)) for name, step in steps.items()}))
"""


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    steps = json.dumps({name: step for name, (step, _) in LIMITS.items()})
    command = [sys.executable, "-c", CODE, steps]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=280).stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is read from Linux's /proc")
@pytest.mark.parametrize("name", LIMITS)
def test_peak(name: str, peaks: dict[str, float]) -> None:
    low, high = LIMITS[name][1]
    assert low - 1 <= peaks[name] <= high  # Linux counts pages in batches: a peak may read a little below its start
