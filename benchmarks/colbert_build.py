"""Time colbert-ai's building of an index on the CPU, and how much memory it takes beyond the collection's embeddings.

``python benchmarks/colbert_build.py`` writes ``results/colbert_build.csv``: one row with li-plugins, one without, each
of a process of its own. The passages are random words, the encoder is small (so that little of what is measured is its
own), and there are enough tokens for 8,192 centroids. The library needs faiss, and its extensions, which are compiled
before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, installed, peak_mib, provenance, save

SIDES = ("colbert-ai", "li-plugins")
DIM = 128


def build(side: str, passages: int, root: Path) -> dict[str, Any]:
    """Index passages of 210 words each in this process; return what the side's row says of it."""
    from colbert import Indexer
    from colbert.infra import ColBERTConfig, Run, RunConfig
    from colbert_gpu import BUILD, encoder

    import li_plugins

    exec(BUILD.format(use_gpu=False), {})
    if side == "li-plugins":
        li_plugins.enable("colbert", strict=True)
    dice = random.Random(0)
    texts = [" ".join(f"w{dice.randrange(20_000)}" for _ in range(210)) for _ in range(passages)]
    config = ColBERTConfig(checkpoint=str(encoder(root)), root=str(root), dim=DIM, doc_maxlen=220, nbits=2)
    with Run().context(RunConfig(nranks=1, root=str(root), experiment="build", avoid_fork_if_possible=True)):
        indexer = Indexer(checkpoint=config.checkpoint, config=config, verbose=0)
        start = time.perf_counter()
        peak = peak_mib(lambda: indexer.index("index", texts, overwrite=True), "cpu")
        seconds = time.perf_counter() - start
    metadata = json.loads((root / "build" / "indexes" / "index" / "metadata.json").read_text())
    own = metadata["num_embeddings"] * DIM * 2 / 2**20
    return {
        "passages": passages,
        "tokens": metadata["num_embeddings"],
        "centroids": metadata["num_partitions"],
        "seconds": f"{seconds:.1f}",
        "peak_mib": f"{peak:.0f}",
        "embeddings_mib": f"{own:.0f}",
        "beyond_mib": f"{peak - own:.0f}",
    }


def main() -> int:
    """Build on either side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passages", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=RESULTS / "colbert_build.csv")
    parser.add_argument("--side", choices=SIDES, help="this side, in this process; its row is printed as JSON")
    arguments = parser.parse_args()
    if arguments.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(build(arguments.side, arguments.passages, Path(folder))))
        return 0
    common = {"version": f"colbert-ai {installed('colbert-ai')}", **provenance("cpu")}
    for side in SIDES:
        print(f"# {side}: {arguments.passages} passages", file=sys.stderr)
        command = [sys.executable, __file__, "--side", side, "--passages", str(arguments.passages)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{side} failed; its output above says why")
        row = {"side": side, **json.loads(done.stdout.splitlines()[-1]), **common}
        save(arguments.output, [row], ("side", "passages", "gpu"))
        print(row, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
