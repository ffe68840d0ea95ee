"""An index that two ranks build, each on a GPU of its own, in children that the library starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_colbert
import torch
from own_process import python

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

SCRIPT = """
import sys
from pathlib import Path

import tiny_colbert

if __name__ == "__main__":
    import li_plugins

    li_plugins.enable("colbert", strict=True)
    from colbert import Indexer
    from colbert.infra import Run, RunConfig

    checkpoint, root = map(Path, sys.argv[1:3])
    texts = tiny_colbert.passages()
    with Run().context(RunConfig(nranks=2, root=str(root), experiment="tests")):
        settings = tiny_colbert.config(checkpoint, root, avoid_fork_if_possible=False)
        indexer = Indexer(checkpoint=str(checkpoint), config=settings, verbose=0)
        indexer.index(name="index", collection=texts, overwrite="force_silent_overwrite")
"""


def test_two_ranks_build_an_index(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    extensions = tmp_path / "extensions"
    python(script, str(checkpoint), str(tmp_path), CXX="/nonexistent", TORCH_EXTENSIONS_DIR=str(extensions))
    assert not extensions.exists(), "nothing is compiled"
    folder = tmp_path / "tests/indexes/index"
    metadata = json.loads((folder / "metadata.json").read_text())
    texts = tiny_colbert.passages()
    assert metadata["num_chunks"] == 2
    assert sum(len(json.loads((folder / f"doclens.{chunk}.json").read_text())) for chunk in range(2)) == len(texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    tiny_colbert.build(checkpoint, tmp_path, texts, name="alone")
    alone = tiny_colbert.searcher(checkpoint, tmp_path, texts, name="alone")
    for place in range(0, len(texts), 7):
        assert searcher.search(texts[place], k=1)[0] == alone.search(texts[place], k=1)[0]
