"""Checkpoints on transformers 5, which fail to load by themselves; on 4 nothing changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_colbert
import torch
from conftest import FOLDER, Unmended
from safetensors.torch import load_file
from transformers import BertModel, PreTrainedModel

NEEDED = hasattr(PreTrainedModel, "get_expanded_tied_weights_keys")
"""Whether this transformers is one of those on which the library fails."""


def model(checkpoint: Path, **settings: Any) -> Any:
    from colbert.modeling.checkpoint import Checkpoint

    return Checkpoint(str(checkpoint), colbert_config=tiny_colbert.config(checkpoint, checkpoint, **settings))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return what a file holds, by the names of modules; some of them have others in files."""
    stored = load_file(folder / "model.safetensors")
    return {name.replace(".beta", ".bias").replace(".gamma", ".weight"): value for name, value in stored.items()}


@pytest.mark.skipif(not NEEDED, reason="the library loads its models on this transformers")
def test_the_library_by_itself_loads_no_model(checkpoint: Path, unmended: Unmended) -> None:
    with unmended(), pytest.raises(AttributeError, match="all_tied_weights_keys"):
        model(checkpoint)
    model(checkpoint)


@pytest.mark.skipif(NEEDED, reason="the library loads no model on this transformers")
def test_where_the_library_loads_its_models_they_stay_the_same(checkpoint: Path, unmended: Unmended) -> None:
    from colbert.modeling.hf_colbert import class_factory

    with unmended():
        expected = model(checkpoint).docFromText(tiny_colbert.passages(8))
    assert torch.equal(model(checkpoint).docFromText(tiny_colbert.passages(8)), expected)
    assert "init_weights" not in vars(class_factory(str(checkpoint)))


def test_the_weights_are_those_of_the_file(checkpoint: Path) -> None:
    loaded = model(checkpoint)
    stored = weights(checkpoint)
    found = loaded.model.state_dict()
    assert {name for name in stored if not torch.equal(found[name], stored[name])} == set()
    assert {name for name in found if name not in stored} <= {"bert.embeddings.position_ids"}
    # the encoder and the head, put together by hand
    ids, mask = loaded.doc_tokenizer.tensorize(tiny_colbert.passages(8))
    bert = BertModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        states = bert(ids, attention_mask=mask).last_hidden_state @ stored["linear.weight"].T
        expected = torch.nn.functional.normalize(states, dim=2)
        embeddings, kept = loaded.doc(ids, mask, keep_dims="return_mask")
    assert kept.any()
    torch.testing.assert_close(embeddings[kept.squeeze(2)], expected[kept.squeeze(2)], rtol=0, atol=1e-5)


def test_a_head_that_the_file_lacks_is_drawn_as_bert_draws_it(checkpoint: Path) -> None:
    from colbert.infra import ColBERTConfig
    from colbert.modeling.colbert import ColBERT

    base = checkpoint.parent / "base"
    loaded = ColBERT(str(base), ColBERTConfig(checkpoint=str(base), dim=64))
    assert loaded.linear.weight.shape == (64, 32)
    assert float(loaded.linear.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    own = weights(base)["encoder.layer.0.output.dense.weight"]
    assert torch.equal(loaded.bert.state_dict()["encoder.layer.0.output.dense.weight"], own)


def test_saved_and_loaded_it_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    loaded = model(checkpoint)
    loaded.save(str(tmp_path / "copy"))
    texts = tiny_colbert.passages(8)
    assert torch.equal(model(tmp_path / "copy").docFromText(texts), loaded.docFromText(texts))


def test_an_index_is_built_and_searched(checkpoint: Path, tmp_path: Path) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    assert [searcher.search(text, k=3)[0][0] for text in texts[::7]] == list(range(0, 60, 7))


SCRIPT = """
import sys
from pathlib import Path

import tiny_colbert

if __name__ == "__main__":
    checkpoint, root = map(Path, sys.argv[1:])
    texts = tiny_colbert.passages()
    from colbert import Indexer
    from colbert.infra import Run, RunConfig

    with Run().context(RunConfig(nranks=1, root=str(root), experiment="tests")):
        settings = tiny_colbert.config(checkpoint, root, avoid_fork_if_possible=False)
        Indexer(checkpoint=str(checkpoint), config=settings, verbose=0).index(name="index", collection=texts)
    searcher = tiny_colbert.searcher(checkpoint, root, texts)
    print("found", searcher.search(texts[14], k=1)[0])
"""


def test_children_of_the_indexer_load_the_model_too(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join(filter(None, [str(FOLDER.parent / "colbert"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "LI_PLUGINS": "1,colbert-compat"}
    done = subprocess.run(
        [sys.executable, str(script), str(checkpoint), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found [14]" in done.stdout
