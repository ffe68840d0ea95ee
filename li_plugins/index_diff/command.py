"""``li-plugins index-diff``: the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DIFFERS = 1


@click.group("index-diff")
def index_diff() -> None:
    """Find where two indexes of colbert-ai part.

    For the same passages, built twice: with another torch, another library, with these plugins and without.
    """


_FOLDER = click.Path(path_type=Path)


@index_diff.command()
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER)
@click.option("--queries", type=_FOLDER, help="Query embeddings [Q, Lq, d], a .pt or .npy file: compare rankings too.")
@click.option("--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Documents of a ranking.")
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=1.0, show_default=True,
    help="Multiplies the tolerances of floating-point numbers.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every figure.")
def diff(a: Path, b: Path, queries: Path | None, top_k: int, tolerance: float, as_json: bool) -> int:
    """Compare the index folders A and B.

    Artifact by artifact in the order of a build, then what both stand for. It names the first that diverges, what that
    explains and what it does not. colbert-ai need not be installed. The exit code is 0 when they are the same within
    tolerance, 1 when they differ, 2 when a file is truncated or foreign.
    """
    from li_plugins.index_diff.comparison import compare
    from li_plugins.index_diff.finding import Tolerance

    with _progress(as_json) as on_step:
        found = compare(a, b, queries=queries, top_k=top_k, tolerance=Tolerance(scale=tolerance), on_step=on_step)
    _show(found, as_json)
    return 0 if found.same else DIFFERS


class _progress:  # noqa: N801 - reads as the function that it stands for
    """A bar for each step, on stderr, gone at the end."""

    def __init__(self, silent: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self._bars = Progress(*columns, console=console, transient=True, disable=silent or not console.is_terminal)

    def __enter__(self) -> Callable[[str, int | None], Callable[[int], object]]:
        self._bars.start()
        return self._step

    def __exit__(self, *raised: object) -> None:
        self._bars.stop()

    def _step(self, name: str, total: int | None) -> Callable[[int], object]:
        for bar in self._bars.task_ids:
            self._bars.update(bar, visible=False)
        bar = self._bars.add_task(name, total=total)
        return lambda done: self._bars.update(bar, advance=done)


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(found)
