"""A real ColBERT checkpoint of a few thousand weights, written to a folder, and texts to index with it."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

SPECIAL = ("[PAD]", *(f"[unused{number}]" for number in range(10)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "lmnrst"]


def write(folder: Path, dim: int = 64) -> Path:
    """Write a checkpoint with its head, whose embeddings have ``dim`` elements."""
    from colbert.infra import ColBERTConfig
    from colbert.modeling.colbert import ColBERT

    base = folder / "base"
    base.mkdir(parents=True)
    vocabulary = [*SPECIAL, *string.punctuation, *WORDS]
    (base / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast.from_pretrained(base, model_max_length=64).save_pretrained(base)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)).save_pretrained(base)
        model = ColBERT(str(base), ColBERTConfig(checkpoint=str(base), dim=dim))
        torch.nn.init.orthogonal_(model.linear.weight)
        model.save(str(folder / "checkpoint"))
    return folder / "checkpoint"


def passages(count: int = 60) -> list[str]:
    """Return texts of 5 to 30 words with some punctuation."""
    dice = random.Random(0)
    texts = []
    for _ in range(count):
        words = dice.choices(WORDS, k=dice.randint(5, 30))
        texts.append(" ".join(words) + dice.choice([".", "!", ", so;", ""]))
    return texts


def config(checkpoint: Path, root: Path, **settings: Any) -> Any:
    """Return the configuration of an index under ``root``, built in this process."""
    from colbert.infra import ColBERTConfig

    fields = {"dim": 64, "nbits": 2, "doc_maxlen": 48, "query_maxlen": 16, "avoid_fork_if_possible": True}
    fields |= {"checkpoint": str(checkpoint), "root": str(root), "experiment": "tests"}
    return ColBERTConfig(**{**fields, **settings})


def build(
    checkpoint: Path,
    root: Path,
    texts: list[str],
    name: str = "index",
    overwrite: Any = "force_silent_overwrite",
    **settings: Any,
) -> Path:
    """Index texts; return the folder of the index."""
    from colbert import Indexer
    from colbert.infra import Run, RunConfig

    with Run().context(RunConfig(nranks=1, root=str(root), experiment="tests", avoid_fork_if_possible=True)):
        indexer = Indexer(checkpoint=str(checkpoint), config=config(checkpoint, root, **settings), verbose=0)
        indexer.index(name=name, collection=texts, overwrite=overwrite)
    return root / "tests" / "indexes" / name


def searcher(checkpoint: Path, root: Path, texts: list[str], name: str = "index", **settings: Any) -> Any:
    """Open an index that ``build`` made."""
    from colbert import Searcher
    from colbert.infra import Run, RunConfig

    with Run().context(RunConfig(nranks=1, root=str(root), experiment="tests")):
        found = config(checkpoint, root, **settings)
        return Searcher(index=name, checkpoint=str(checkpoint), collection=texts, config=found, verbose=0)
