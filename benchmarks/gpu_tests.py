"""Run the tests that need a CUDA device and record the outcome: one CSV row per suite, with hardware and versions.

CI has no GPU. Whoever has one runs ``python benchmarks/gpu_tests.py`` and commits ``results/gpu_tests.csv``.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import torch
from common import head, save

ROOT = Path(__file__).resolve().parent.parent
SUITES = {
    "maxsim kernels against float64 and torch": ["tests/integration/gpu"],
    "PyLate, patched and unpatched": [
        "tests/integration/pylate/test_pylate_cuda.py",
        "tests/integration/pylate/test_pylate_training.py",
    ],
}


def run(paths: list[str], options: list[str]) -> dict[str, int]:
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
    """Run every suite; return 1 when a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_tests.csv")
    parser.add_argument("--commit", default=None, help="the commit to record, where there is no git")
    parser.add_argument("--suite", action="append", choices=SUITES, help="run this one only; may be repeated")
    parser.add_argument("options", nargs="*", help="passed on to pytest, after --")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found; run this on a machine that has one")
    gpu = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    rows = []
    for suite in arguments.suite or SUITES:
        paths = SUITES[suite]
        rows.append(
            {
                "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                "suite": suite,
                **run(paths, arguments.options),
                "gpu": gpu,
                "torch": torch.__version__,
                "triton": version("triton"),
                "python": platform.python_version(),
                "commit": arguments.commit or head(),
            }
        )
    # rows of other suites, cards and releases of torch stay
    save(arguments.output, rows, ("suite", "gpu", "torch"))
    print(arguments.output.read_text())
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
