"""What a build ran on: the versions, devices, threads and switches that numbers depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

DISTRIBUTIONS = (
    "torch", "numpy", "transformers", "tokenizers", "colbert-ai", "faiss-cpu", "faiss-gpu", "triton", "li-plugins",
)  # fmt: skip
VARIABLES = ("LI_PLUGINS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
             "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")  # fmt: skip


def environment() -> dict[str, Any]:
    """Return this process's, ready for JSON."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.system()}
    for name in DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found["torch"] = str(torch.__version__)  # with its build, which the metadata leave out
    backends = torch.backends
    found |= {
        "CPU": processor()["model name"],
        "CPU instructions": backends.cpu.get_cpu_capability(),
        "GPU": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "CUDA": torch.version.cuda,
        # a CUDA build of torch whose cuDNN is not installed aborts when it is asked
        "cuDNN": backends.cudnn.version() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cuDNN deterministic": backends.cudnn.deterministic,
        "cuDNN benchmark": backends.cudnn.benchmark,
        "float32 matmul": torch.get_float32_matmul_precision(),
        "MKL": backends.mkl.is_available(),
        "MKL-DNN": backends.mkldnn.is_available(),
        "flash attention": backends.cuda.flash_sdp_enabled(),
    }
    return found | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what differs between two environments."""
    return {
        key: [a.get(key), b.get(key)] for key in [*a, *(key for key in b if key not in a)] if a.get(key) != b.get(key)
    }


def processor() -> dict[str, str]:
    """Return what Linux says of the first processor, by its own words; elsewhere the ``model name`` alone."""
    said: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            word, _, value = line.partition(":")
            said.setdefault(word.strip(), value.strip())
    return {"model name": platform.processor() or platform.machine(), **said}
