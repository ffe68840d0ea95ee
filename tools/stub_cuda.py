"""Let a CUDA build of torch be imported on a machine that has none of NVIDIA's libraries.

PyPI's wheels of torch for Linux are CUDA builds: ``import torch`` loads cuBLAS, cuDNN, NCCL and a dozen more, together
2.7 GB, although nothing of them runs on a CPU. The parity matrix needs many torch releases and no GPU, so it leaves
those packages out (``overrides/no-nvidia.txt``) and puts one small library in their place that defines the symbols that
the loader insists on, each aborting. The CUDA runtime itself (2 MB) is the real one: its initialisers run.

Until torch's CPU builds are on PyPI under a name or a variant that pip and uv pick by themselves (PEP 817). In an
environment with a CPU build, or with NVIDIA's packages, nothing is missing and nothing is done.

Needs ``pyelftools`` and ``ziglang`` (a C compiler as a wheel), so that it runs on machines without a toolchain.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

STUB = "libli_plugins_cuda_stub.so"

# What torch links to, as the start of the file's name, and how the symbols that come from it begin. Neither the driver
# (libcuda, opened on demand) nor the runtime (libcudart, installed) is here.
LIBRARIES = {
    "libcublas": "cublas",
    "libcudnn": "cudnn",
    "libcufft": "cufft",
    "libcufile": "cuFile",
    "libcupti": "cupti",
    "libcurand": "curand",
    "libcusolver": "cusolver",
    "libcusparse": "cusparse",
    "libnccl": "nccl",
    "libnvJitLink": "nvJitLink",
    "libnvToolsExt": "nvtx",
    "libnvrtc": "nvrtc",
    "libnvshmem": "nvshmem",
}
LIBRARY = re.compile("|".join(LIBRARIES))
SYMBOL = re.compile("|".join(LIBRARIES.values()))


def links(library: Path) -> tuple[set[str], set[str], set[str]]:
    """Read what a shared library needs, lacks and defines.

    Parameters
    ----------
    library
        An ELF file.

    Returns
    -------
    tuple
        Names of the libraries that it loads; CUDA symbols that it takes from others; CUDA symbols that it offers.
    """
    needed: set[str] = set()
    lacking: set[str] = set()
    defined: set[str] = set()
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        dynamic = elf.get_section_by_name(".dynamic")
        if isinstance(dynamic, DynamicSection):
            needed.update(tag.needed for tag in dynamic.iter_tags("DT_NEEDED"))
        symbols = elf.get_section_by_name(".dynsym")
        if isinstance(symbols, SymbolTableSection):
            for symbol in symbols.iter_symbols():
                if SYMBOL.match(symbol.name):
                    (lacking if symbol["st_shndx"] == "SHN_UNDEF" else defined).add(symbol.name)
    return needed, lacking, defined


def compile_stub(symbols: Iterable[str], stub: Path) -> None:
    """Write a shared library that defines every symbol as a function that aborts.

    It links to the C library, not only for ``abort``: torch asks for some symbols by version, and the loader's check
    takes an unversioned definition only from a library that has a version table.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "stub.c")
        functions = "".join(f"void {name}(void) {{ abort(); }}\n" for name in sorted(symbols))
        source.write_text(f"#include <stdlib.h>\n{functions}")
        compiler = [sys.executable, "-m", "ziglang", "cc"]
        subprocess.run([*compiler, "-shared", "-fPIC", "-O1", "-o", str(stub), str(source)], check=True)


def stub_cuda(site_packages: Path) -> str:
    """Put the stub under the name of every CUDA library that torch needs and that is absent.

    Parameters
    ----------
    site_packages
        Folder that holds ``torch``.

    Returns
    -------
    str
        What was done, for people.
    """
    folder = site_packages / "torch" / "lib"
    # A link is an earlier run's; what it stood for counts as absent again.
    own = [path for path in folder.glob("*.so*") if not path.is_symlink() and path.name != STUB]
    if not own:
        raise SystemExit(f"asked to stub CUDA for torch in {site_packages}; found no torch there; install torch first")
    present = {path.name for path in (*own, *site_packages.glob("nvidia/**/*.so*"))}
    needed: set[str] = set()
    lacking: set[str] = set()
    defined: set[str] = set()
    for library in own:
        for everything, found in zip((needed, lacking, defined), links(library), strict=True):
            everything |= found
    absent = sorted(name for name in needed - present if LIBRARY.match(name))
    if not absent:
        return "nothing to stub: torch finds every library that it links to"
    compile_stub(lacking - defined, folder / STUB)
    for name in absent:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(STUB)
    return f"{len(lacking - defined)} symbols stubbed for {', '.join(absent)}"


def main() -> None:
    """Read the command line and report in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site_packages", type=Path, help="folder that holds torch")
    print(stub_cuda(parser.parse_args().site_packages))


if __name__ == "__main__":
    main()
