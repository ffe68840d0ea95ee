"""A real BERT of a few thousand weights, written to a folder: what a library loads where no model hub is in reach."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

TEXT = (
    "fruits vegetables apples bananas berries are is was good bad healthy for the a an of in on and or not health "
    "trees growing grow red green yellow sweet sour eat eating people children doctor advice study shows that more "
    "flow boundary layer supersonic wing heat transfer pressure jet theory experiment plate shock wave"
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write(folder: Path, seed: int = 0) -> Path:
    """Write a model and its tokenizer; the same seed gives the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase + string.digits
    vocabulary = [*SPECIAL, *string.punctuation, *letters, *(f"##{letter}" for letter in letters), *TEXT.split()]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True, model_max_length=128).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(set(vocabulary)),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        # Both runs of a comparison see the same weights and no dice.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder
