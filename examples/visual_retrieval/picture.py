"""Where on a page each word of a query finds its match."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from colpali_engine.interpretability import get_similarity_maps_from_embeddings
from colpali_engine.models import ColModernVBert
from matplotlib import pyplot

from visual_retrieval.model import GRID, encode_pages, encode_queries
from visual_retrieval.pages import SIDE, Page, Vocabulary, pixels


def save_similarity(path: Path, model: ColModernVBert, page: Page, words: list[str], vocabulary: Vocabulary) -> None:
    """Draw a page once for each word, with the similarity of every patch over it; the best patch is framed."""
    with torch.no_grad():
        query = encode_queries(model, vocabulary.query(words)[None])[:, : len(words)]
        vectors = encode_pages(model, pixels([page]))
    mask = torch.ones(vectors.shape[:2], dtype=torch.bool)
    (maps,) = get_similarity_maps_from_embeddings(vectors, query, (GRID, GRID), mask)
    figure, axes = pyplot.subplots(1, len(words), figsize=(3.2 * len(words), 3.6), squeeze=False)
    edge = SIDE / GRID
    for axis, word, similarity in zip(axes[0], words, maps, strict=True):
        axis.imshow(page.picture, cmap="gray", extent=(0, SIDE, SIDE, 0))
        axis.imshow(similarity.T, cmap="viridis", alpha=0.45, extent=(0, SIDE, SIDE, 0), interpolation="nearest")
        column, row = divmod(int(similarity.argmax()), GRID)
        frame = pyplot.Rectangle((column * edge, row * edge), edge, edge, fill=False, edgecolor="red", linewidth=2)
        axis.add_patch(frame)
        axis.set_title(f"{word}  {similarity.max():.2f}")
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
