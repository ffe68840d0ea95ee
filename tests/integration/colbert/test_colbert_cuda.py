"""colbert-ai on a CUDA device, patched and by itself, and against its own CUDA extensions where they compile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import tiny_colbert
import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.infra import ColBERTConfig
from colbert.modeling import colbert
from gpu_cases import *  # noqa: F403 - its tests are collected here
from gpu_cases import assert_same, ranking, training
from gpu_codec_cases import *  # noqa: F403 - likewise
from gpu_codec_cases import ATTRIBUTES, decompress_residuals, library, packbits, unit
from li_plugins_colbert import graphs, residency

import li_plugins
from li_plugins.ops import dispatch
from li_plugins.testing.parity import assert_parity

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Callable[..., Any]]:
    """The library's two CUDA extensions, which take two minutes to compile."""
    if shutil.which("nvcc") is None or shutil.which("ninja") is None:
        pytest.skip("no nvcc or no ninja: the library's CUDA extensions cannot be compiled")
    with li_plugins.suspended():
        own = {name: vars(ResidualCodec)[name] for name in ATTRIBUTES if name in vars(ResidualCodec)}
        for name in own:
            delattr(ResidualCodec, name)
        ResidualCodec.try_load_torch_extensions(True)
        found = {name: vars(ResidualCodec)[name] for name in ATTRIBUTES}
        for name in ATTRIBUTES:
            delattr(ResidualCodec, name)
        for name, value in own.items():
            setattr(ResidualCodec, name, value)
    return found


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_the_bits_of_the_compiled_extensions(compiled: dict[str, Callable[..., Any]], nbits: int) -> None:
    dim, quantiles = 64, torch.arange(2**nbits) / 2**nbits
    rest = torch.randn(4096) * 0.05
    codec = ResidualCodec(
        ColBERTConfig(dim=dim, nbits=nbits), unit(99, dim), torch.tensor(0.1), rest.quantile(quantiles[1:]),
        rest.quantile(quantiles + 0.5 / 2**nbits),
    )  # fmt: skip
    codes = torch.randint(0, 99, (5000,), dtype=torch.int32, device="cuda")
    residuals = torch.randint(0, 256, (5000, dim * nbits // 8), dtype=torch.uint8, device="cuda")
    tables = codec.bucket_weights, codec.reversed_bit_map, codec.decompression_lookup_table
    arguments = (residuals, *tables, codes, codec.centroids, dim, nbits)
    expected = compiled["decompress_residuals"](*arguments)
    assert torch.equal(decompress_residuals(*arguments), expected), "what the other tests compare with"
    assert torch.equal(ResidualCodec.decompress_residuals(*arguments), expected)
    flags = torch.randint(0, 2, (32 * 999,), dtype=torch.uint8, device="cuda")
    expected = compiled["packbits"](flags)
    assert torch.equal(packbits(flags), expected)
    assert torch.equal(ResidualCodec.packbits(flags), expected)


@pytest.mark.parametrize("queries", [1, 6], ids=["one", "aligned"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("lowered", [None, torch.float16], ids=str)
def test_gradients(queries: int, wanted: tuple[bool, bool], lowered: torch.dtype | None) -> None:
    pair = [unit(queries, 9, 16, dtype=torch.float32).cuda(), unit(6, 13, 16, dtype=torch.float32).cuda()]
    mask = (torch.rand(6, 13, 1) < 0.7).cuda()
    mask[:, 0] = True
    run = assert_parity(colbert.colbert_score, pair, mask, ColBERTConfig(), wanted=wanted, lowered=lowered)
    assert run.scores.dtype is torch.float32


def test_a_step_takes_less_memory(checkpoint: Path, tmp_path: Path) -> None:
    model, _ = training(checkpoint, tmp_path, 8)
    queries, mask = unit(16, 32, 64, dtype=torch.float32).cuda(), torch.ones(128, 180, 1, dtype=torch.bool).cuda()
    documents = unit(128, 180, 64).cuda()

    def peak() -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        leaves = [side.clone().requires_grad_() for side in (queries, documents)]
        with torch.autocast("cuda", torch.float16):
            model.compute_ib_loss(*leaves, mask).backward()
        return torch.cuda.max_memory_allocated() - before

    peak()
    ours = peak()
    with library():
        theirs = peak()
    assert ours < theirs / 2


@pytest.mark.parametrize("free", [False, True], ids=["nothing fits", "codes fit"])
def test_what_does_not_fit_stays_on_the_host(
    checkpoint: Path, tmp_path: Path, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    settings = {"ncells": 3, "ndocs": 240, "centroid_score_threshold": 0.3}
    expected = ranking(tiny_colbert.searcher(checkpoint, tmp_path, texts, **settings))
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts, **settings)
    codes = searcher.ranker.embeddings.codes.nbytes
    monkeypatch.setattr(residency, "free_bytes", lambda device: 2 * codes if free else 0)
    vars(searcher.ranker).pop(residency.KEPT)
    stored = residency.of(searcher.ranker)
    assert (stored.codes.is_cuda, stored.residuals.is_cuda) == (free, False)
    assert "in the host's memory" in stored.why
    assert_same(ranking(searcher), expected)
    together = searcher.search_all(dict(enumerate(texts[::7])), k=10)
    assert_same([tuple(zip(*[(p, s) for p, _, s in rows], strict=True)) for rows in together.data.values()], expected)


def test_a_search_asks_for_no_memory_of_the_device(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, tmp_path, texts)
    searcher = tiny_colbert.searcher(checkpoint, tmp_path, texts)
    monkeypatch.setattr(residency, "free_bytes", lambda device: pytest.fail("asked in a search"))
    assert searcher.search(texts[7], k=1)[0] == [7]


FEW = {"ncells": 3, "ndocs": 24, "centroid_score_threshold": 0.3}
"""Settings with so few candidates that both stages leave some out."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[graphs.Graph]:
    """Ask for graphs, and return those that are made."""
    monkeypatch.setenv(graphs.VARIABLE, "1")
    monkeypatch.setattr(graphs, "_failures", [])
    found: list[graphs.Graph] = []
    make = graphs.Graph
    monkeypatch.setattr(graphs, "Graph", lambda *given: found.append(make(*given)) or found[-1])
    return found


def built(checkpoint: Path, root: Path) -> Any:
    texts = tiny_colbert.passages()
    tiny_colbert.build(checkpoint, root, texts)
    return tiny_colbert.searcher(checkpoint, root, texts, **FEW)


@pytest.mark.parametrize("asked", ["1", "auto"])
def test_searches_by_graphs(
    checkpoint: Path, tmp_path: Path, made: list[graphs.Graph], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = built(checkpoint, tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv(graphs.VARIABLE, "0")
        expected = ranking(searcher)
    if asked == "auto":
        monkeypatch.setenv(graphs.VARIABLE, asked)
        monkeypatch.setattr("threading.active_count", lambda: 1)
    memory = []
    for _ in range(4):
        assert_same(ranking(searcher), expected)
        memory.append(torch.cuda.memory_allocated())
    assert len(made) == 1
    assert memory[-1] == memory[-2], "a search leaves nothing behind"
    # what lies elsewhere is captured anew
    searcher.ranker.embeddings.codes = searcher.ranker.embeddings.codes.clone()
    for _ in range(2):
        assert_same(ranking(searcher), expected)
    assert len(made) == 2
    # and products that autocast rounds otherwise
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(2):
            ranking(searcher)
    assert len(made) == 3
    assert_same(ranking(searcher), expected)
    assert not graphs._failures


def test_what_comes_after_a_capture(checkpoint: Path, tmp_path: Path, made: list[graphs.Graph]) -> None:
    """Random numbers, other graphs and the allocator are what they were, in inference mode and out of it."""
    searcher = built(checkpoint, tmp_path)
    torch.cuda.manual_seed(0)
    expected = torch.rand(100, device="cuda")
    for _ in range(2):
        ranking(searcher)
    assert len(made) == 1
    torch.cuda.manual_seed(0)
    assert torch.equal(torch.rand(100, device="cuda"), expected)
    torch.cuda.empty_cache()
    noise = torch.empty(100, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise.copy_(torch.nn.functional.dropout(torch.ones(100, device="cuda"), 0.5))
    graph.replay()
    first = noise.clone()
    graph.replay()
    assert not torch.equal(first, noise)
    ranking(searcher)
    graph.replay()
    assert set(noise.unique().tolist()) == {0.0, 2.0}


def test_kernels_that_wait_are_not_captured(
    checkpoint: Path, tmp_path: Path, made: list[graphs.Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LI_PLUGINS_BACKEND", "blocked")
    dispatch.reset()
    try:
        searcher = built(checkpoint, tmp_path)
        for _ in range(2):
            ranking(searcher)
    finally:
        monkeypatch.undo()
        dispatch.reset()
    assert not made
    assert not graphs._failures


def test_searches_of_several_threads(checkpoint: Path, tmp_path: Path, made: list[graphs.Graph]) -> None:
    """Two indexes, whose graphs are of one process."""
    searchers = [built(checkpoint, tmp_path / name) for name in "ab"]
    embedded = [searchers[0].encode([text]) for text in tiny_colbert.passages()[::7]]

    def search(turn: int) -> list[tuple[list[int], list[float]]]:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            order = [(turn + step) % len(embedded) for step in range(len(embedded))]
            found = {place: searchers[turn % 2].dense_search(embedded[place], 10) for place in order}
        return [(found[place][0], found[place][2]) for place in sorted(found)]

    expected = [search(turn) for turn in (0, 1)]
    with ThreadPoolExecutor(4) as threads:
        for turn, found in enumerate(threads.map(search, range(12))):
            assert_same(found, expected[turn % 2])
    assert len(made) == 2
    assert not graphs._failures


def test_a_search_while_somebody_else_works(checkpoint: Path, tmp_path: Path, made: list[graphs.Graph]) -> None:
    """Captures go on where other threads allocate memory and wait for the device."""
    searcher = built(checkpoint, tmp_path)
    ended = Event()

    def work() -> int:
        times = 0
        while not ended.is_set():
            torch.ones(1 << 22, device="cuda").sum().item()
            times += 1
        return times

    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work)
        try:
            found = [ranking(searcher) for _ in range(3)]
        finally:
            ended.set()
        assert working.result() > 0
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    assert len(made) == 1
