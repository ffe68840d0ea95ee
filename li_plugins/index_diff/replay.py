"""What comes after the centroids, done again: B's build from its captured embeddings, with artifacts of A in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.index_diff.capture import CENTROIDS, EMBEDDINGS, FOLDER, Capture, save_manifest
from li_plugins.index_diff.folder import CHUNK_FILES, IndexFolder
from li_plugins.ops import compress

REPLAYED = ("centroids", "buckets", "embeddings")
"""The artifacts of A that can take the place of B's, in the order of a build."""


def replay(
    a: str | Path,
    b: str | Path,
    injected: Iterable[str],
    folder: Path,
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> None:
    """Write the index that B's build makes of artifacts of A and, for the rest, its own.

    Codes, residuals and the inverted file are made again, as colbert-ai makes them on the CPU: from the captured
    embeddings and the stored centroids and buckets. All else is B's.

    Parameters
    ----------
    a, b
        The index folders; B with a capture, A with one if its embeddings are injected.
    injected
        Names of ``REPLAYED``; none: B is made again of its own, which shows what making it again changes.
    folder
        Where to; it must not be there.
    on_tokens
        Is told of the tokens that are behind.

    Raises
    ------
    BadInput
        When a name is unknown, a capture is missing, or the artifacts do not fit together.
    """
    names = frozenset(injected)
    if names - set(REPLAYED):
        unknown = ", ".join(sorted(names - set(REPLAYED)))
        raise BadInput(f"inject one of {', '.join(REPLAYED)}", unknown, "what comes before them: capture --inject")
    theirs, mine = IndexFolder(a), IndexFolder(b)
    capture = Capture(mine.path)
    centroids = theirs.centroids if "centroids" in names else mine.centroids
    cutoffs, weights = theirs.buckets if "buckets" in names else mine.buckets
    if centroids.shape[1] != mine.centroids.shape[1]:
        raise BadInput("centroids of A and B have one width", f"{centroids.shape[1]} and {mine.centroids.shape[1]}",
                       "inject from an index of the same model")  # fmt: skip
    same_passages = theirs.chunks == mine.chunks and torch.equal(theirs.lengths, mine.lengths)
    if "embeddings" in names and not same_passages:
        raise BadInput(
            "A and B have the same passages, of the same tokens, in the same chunks",
            f"{len(theirs.lengths)} and {len(mine.lengths)} passages in {theirs.chunks} and {mine.chunks} chunks",
            "compare doclens with `index-diff diff`",
        )
    if folder.exists():
        raise BadInput(f"{folder} is a folder to be made", "it is there", "name another one")
    given = Capture(theirs.path) if "embeddings" in names else capture
    nbits = len(weights).bit_length() - 1
    folder.mkdir(parents=True)
    for name in ("plan.json", "metadata.json"):
        shutil.copyfile(mine.path / name, folder / name)
    for name in ("buckets.pt", "avg_residual.pt"):
        shutil.copyfile((theirs if "buckets" in names else mine).path / name, folder / name)
    torch.save(centroids.clone(), folder / "centroids.pt")
    keys = []
    passages = 0
    for chunk in range(mine.chunks):
        doclens = mine.doclens(chunk)
        codes, residuals = compress(given.embeddings(chunk), centroids.float(), cutoffs.float(), nbits=nbits)
        torch.save(codes, folder / f"{chunk}.codes.pt")
        torch.save(residuals, folder / f"{chunk}.residuals.pt")
        for name in CHUNK_FILES[2:]:
            shutil.copyfile(mine.path / name.format(chunk), folder / name.format(chunk))
        owners = torch.arange(passages, passages + len(doclens)).repeat_interleave(doclens)
        keys.append(((codes.long() << 32) | owners).unique())
        passages += len(doclens)
        on_tokens(len(codes))
    _link(capture, given, folder / FOLDER)
    torch.save(_inverted(torch.cat(keys).sort().values, len(centroids)), folder / "ivf.pid.pt")


def _link(capture: Capture, given: Capture, folder: Path) -> None:
    """Point to what was captured of the build and is not made again: ties are judged on it, and it may be large."""
    folder.mkdir()
    files = {}
    for name in (path.name for path in capture.path.iterdir() if path.name in capture.files):
        if name != CENTROIDS:
            source = given if name.endswith(EMBEDDINGS.format("")) else capture
            files[name] = source.files.get(name)
            (folder / name).symlink_to((source.path / name).resolve())
    save_manifest(folder, files)


def _inverted(keys: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return passages and lengths of the cells, from rising keys: the cell in the high bits, the passage in the low."""
    return (keys & (2**32 - 1)).int(), torch.bincount(keys >> 32, minlength=cells)
