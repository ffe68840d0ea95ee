"""Run the tests that need a CUDA device and record the outcome: one CSV row per suite, with hardware and versions.

CI has no GPU. Whoever has one runs ``python benchmarks/gpu_tests.py`` and commits ``results/gpu_tests.csv``. Libraries
that cannot be installed together have their suites run one after the other, by ``--only``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from common import RESULTS, ROOT, provenance, save

SUITES = {
    "maxsim kernels against float64 and torch": ["tests/integration/gpu"],
    "PyLate, patched and unpatched": [
        "tests/integration/pylate/test_pylate_cuda.py",
        "tests/integration/pylate/test_pylate_training.py",
    ],
    "colpali-engine, patched and unpatched": [
        "tests/integration/colpali/test_colpali_cuda.py",
        "tests/integration/colpali/test_colpali_training.py",
    ],
    "colbert-ai, patched and unpatched": ["tests/integration/colbert/test_colbert_cuda.py"],
    "two GPUs: k-means over NCCL, and an index of two ranks": [
        "tests/integration/gpu/test_kmeans_two_gpus.py",
        "tests/integration/colbert/test_colbert_two_gpus.py",
    ],
    "sentence-transformers, patched and unpatched": [
        "tests/integration/sentence_transformers/test_st_cuda.py",
        "tests/integration/sentence_transformers/test_st_training.py",
    ],
}


def run(paths: list[str], options: list[str]) -> dict[str, Any]:
    """Run pytest on the paths; return how many tests passed, failed and were skipped.

    Raises
    ------
    SystemExit
        No test ran.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", *options, f"--junitxml={report}", *paths], cwd=ROOT)
        if not report.exists():
            raise SystemExit(f"pytest wrote no report for {' '.join(paths)}; its output above says why")
        suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    if not passed + failed:
        raise SystemExit(f"no test ran in {' '.join(paths)}")
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"]}


def main() -> int:
    """Run the suites; return 1 when a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="regular expression on the suite")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu_tests.csv")
    parser.add_argument("--commit", default=None, help="the commit to record, where there is no git")
    parser.add_argument("options", nargs="*", help="passed on to pytest, after --")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; run this on a machine that has one")
    common = provenance("cuda", arguments.commit)
    common["gpu"] = f"{torch.cuda.device_count()} x {common['gpu']}"
    rows = []
    for suite, paths in SUITES.items():
        if not arguments.only.search(suite):
            continue
        rows.append({"suite": suite, **run(paths, arguments.options), **common})
        save(arguments.output, rows[-1:], ("suite", "gpu", "commit"))
    print(arguments.output.read_text())
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
