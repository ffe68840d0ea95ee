"""k-means of rows that are spread over two ranks: the centroids of all rows, the same on both."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import two_ranks
from torch import Tensor

from li_plugins.errors import BadInput
from li_plugins.ops import kmeans

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def some(rows: int) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))


def few_places() -> Tensor:
    """Return rows that begin as equal centroids, most of which begin anew."""
    return torch.cat([torch.zeros(60, 2), 10 * torch.eye(2), torch.tensor([[30.0, 30], [-40, 5], [7, -60]])])


CASES = {
    "plain": lambda part: kmeans(some(300)[part], 12, iterations=4, seed=3, group=dist.group.WORLD),
    "left out": lambda part: kmeans(
        some(300)[part], 12, iterations=4, seed=3, max_rows_per_cluster=5, group=dist.group.WORLD
    ),
    "anew": lambda part: kmeans(few_places()[part], 6, iterations=6, seed=1, group=dist.group.WORLD),
    "half": lambda part: kmeans(some(300).half()[part], 12, iterations=4, seed=3, group=dist.group.WORLD),
}
EXPECTED = {
    "plain": lambda: kmeans(some(300), 12, iterations=4, seed=3),
    "left out": lambda: kmeans(some(300), 12, iterations=4, seed=3, max_rows_per_cluster=5),
    "anew": lambda: kmeans(few_places(), 6, iterations=6, seed=1),
    "half": lambda: kmeans(some(300).half(), 12, iterations=4, seed=3),
}
PARTS = {
    "uneven": (slice(0, 37), slice(37, None)),
    "all on one": (slice(0, 0), slice(0, None)),
}


def rank_main(rank: int, port: str, output: str) -> None:
    """Run every case as one of two ranks, which meet at the parent's store, and save what it returns."""
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found: dict[str, Tensor | str] = {}
    for name, case in CASES.items():
        for how, parts in PARTS.items():
            found[f"{name}, {how}"] = case(parts[rank])
    rows = some(20)[10 * rank : 10 * rank + 10]
    rows[3] = torch.nan if rank else 0
    for name, clusters in (("infinite", 4), ("few", 21)):
        try:
            kmeans(rows, clusters, group=dist.group.WORLD)
        except BadInput as error:
            found[name] = str(error)
    torch.save(found, f"{output}{rank}.pt")
    while not Path(f"{output}{1 - rank}.pt").exists():  # whoever leaves earlier takes the connection away
        time.sleep(0.01)
    os._exit(0)  # destroy_process_group of torch 2.5 now and then waits forever


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor | str]]:
    # both are here, whatever the machine's name stands for elsewhere
    interface = "lo" if sys.platform == "linux" else "lo0"
    return two_ranks.found_by(__file__, tmp_path_factory.mktemp("ranks"), GLOO_SOCKET_IFNAME=interface)


@pytest.mark.parametrize("how", PARTS)
@pytest.mark.parametrize("name", CASES)
def test_the_centroids_of_all_rows_on_every_rank(ranks: list[dict[str, Tensor]], name: str, how: str) -> None:
    first, second = (found[f"{name}, {how}"] for found in ranks)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, EXPECTED[name](), rtol=1e-5, atol=1e-6)


def test_every_rank_refuses_what_one_rank_has(ranks: list[dict[str, str]]) -> None:
    for found in ranks:
        assert "the rows of kmeans are finite" in found["infinite"]
        assert "20 rows" in found["few"]


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), *sys.argv[2:])
