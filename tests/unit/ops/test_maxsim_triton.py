"""The Triton kernels of every operation, run by Triton's interpreter in a process of their own.

The interpreter is chosen when triton is first imported, for the whole process: other tests must not see it, and nothing
that they import may take it away. ``TRITON_INTERPRET=1 python -m pytest tests/unit/ops/maxsim_triton_cases.py`` is the
same by hand.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
MATRIX = "layouts_and_rules or odd_shapes"
ROUNDS_BY_COLUMN = "Haswell"
"""A processor on which numpy, which multiplies for the interpreter, rounds equal columns of a product differently."""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
@pytest.mark.parametrize(
    ("cases", "selection", "least", "processor"),
    [
        ("maxsim_triton_cases.py", MATRIX, 28, ""),
        ("maxsim_triton_cases.py", f"not ({MATRIX})", 50, ""),
        ("maxsim_triton_cases.py", "any_layout or exact_factors", 5, ROUNDS_BY_COLUMN),
        ("smooth_maxsim_triton_cases.py", "", 40, ""),
        ("kmeans_triton_cases.py", "", 90, ""),
        ("codec_triton_cases.py", "", 90, ""),
        ("stored_triton_cases.py", "", 120, ""),
        ("near_triton_cases.py", "", 30, ""),
    ],
    ids=["matrix", "rest", "another processor", "smooth", "kmeans", "codec", "stored", "near"],
)
def test_every_case_passes_in_the_interpreter(
    tmp_path: Path, cases: str, selection: str, least: int, processor: str
) -> None:
    if processor and platform.machine() != "x86_64":
        pytest.skip("products of another processor can be had on x86-64")
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if processor:
        environment["OPENBLAS_CORETYPE"] = processor
    report = tmp_path / "report.xml"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            "-k",
            selection,
            str(HERE / cases),
        ],
        env={**os.environ, **environment},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    suite = next(ElementTree.parse(report).iter("testsuite"))
    assert int(suite.get("tests", 0)) >= least, "some were not collected"
    assert int(suite.get("skipped", 0)) == 0
