"""``li-plugins index-diff``: the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from li_plugins.program import Program

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
    explains and what it does not. colbert-ai need not be installed.

    The exit code is 0 when they are the same within tolerance, 1 when they differ, 2 when a file is truncated, damaged
    or foreign.
    """
    from li_plugins.index_diff.comparison import compare
    from li_plugins.index_diff.finding import Tolerance

    with _progress(as_json) as on_step:
        found = compare(a, b, queries=queries, top_k=top_k, tolerance=Tolerance(scale=tolerance), on_step=on_step)
    _show(found, as_json)
    return 0 if found.same else DIFFERS


@index_diff.command()
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--to", "kept", type=_FOLDER, metavar="FOLDER", help="Keep the index that was made; default: removed.")
@click.option("--queries", type=_FOLDER, help="Query embeddings, as in `diff`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: of `before` and `after`.")
def inject(a: Path, b: Path, names: tuple[str, ...], kept: Path | None, queries: Path | None, as_json: bool) -> int:
    """Make B again with artifacts of A.

    A and B are index folders, NAME is centroids, buckets or embeddings. Codes, residuals and inverted file of B are
    made again from its captured embeddings, with these artifacts of A in the place of its own; without a NAME, of B's
    own alone. What agrees with A now and did not before is explained by them. To inject what comes before, build again
    with `capture --inject`.

    The exit code is 0 when all that was made again agrees with A within tolerance, 1 when not, 2 when there is no
    capture.
    """
    from tempfile import TemporaryDirectory

    from li_plugins.index_diff.comparison import compare
    from li_plugins.index_diff.folder import IndexFolder
    from li_plugins.index_diff.replay import replay
    from li_plugins.index_diff.report import Injection

    with TemporaryDirectory() as scratch, _progress(as_json) as on_step:
        made = kept or Path(scratch) / "index"
        before = compare(a, b, queries=queries, on_step=on_step)
        replay(a, b, names, made, on_step("codes and residuals", int(IndexFolder(b).lengths.sum())))
        after = compare(a, made, queries=queries, on_step=on_step)
    found = Injection(before, after, names)
    _show(found, as_json)
    return 0 if found.same else DIFFERS


@index_diff.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[--inject NAME=INDEX] [--texts N] [-m]",
)
@click.option(
    "--inject", "injected", multiple=True, metavar="NAME=INDEX",
    help="Give the build an artifact of another captured index: sampled-passages, sample, rng, centroids, buckets or "
    "embeddings.",
)  # fmt: skip
@click.option(
    "--texts", type=click.IntRange(min=0), default=8, show_default=True, help="Keep hidden states of so many."
)
@click.option("-m", "is_module", is_flag=True, help="Run a module, as `python -m` does.")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def capture(
    injected: tuple[str, ...], texts: int, is_module: bool, program: str, arguments: tuple[str, ...]
) -> Program:
    """Run a program and record the indexes it builds.

    Into a folder `capture` inside each index folder: versions and switches, the sample and the random states before
    its shuffle, centroids before rounding, embeddings before compression, hidden states of a few texts. `diff` compares
    them where both folders have them. It runs as python would run it; the indexer's children are recorded too.
    """
    if not is_module and not Path(program).exists():
        raise click.UsageError(f"there is no file {program!r}; to run a module say: capture -m {program}")
    from li_plugins.index_diff.recorder import Recording, install

    pairs = [text.partition("=") for text in injected]
    for name, equals, index in pairs:
        if not equals or not index:
            raise click.BadParameter(f"{name!r} is not NAME=INDEX", param_hint="--inject")
    recording = Recording(texts, {name: str(Path(index).resolve()) for name, _, index in pairs})
    recording.check()
    install(recording)
    return Program(program, arguments, is_module)


@index_diff.command()
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER)
@click.option("--plot", type=_FOLDER, metavar="PNG", help="Draw the drift; needs matplotlib.")
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=1e-4, show_default=True,
    help="Greatest difference of the same, relative to a layer's root mean square.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def layers(a: Path, b: Path, plot: Path | None, tolerance: float, as_json: bool) -> int:
    """Compare the encoder's layers in two captures.

    A and B are index folders. For the texts whose hidden states both builds kept, over tokens that are no padding: the
    greatest and mean difference and the cosine, from the embeddings to the projection; the weights first.

    The exit code is 0 when weights are the same and all layers within tolerance, 1 when not, 2 when there is no capture
    or of other texts.
    """
    from li_plugins.index_diff.layers import compare_layers

    found = compare_layers(str(a), str(b), tolerance)
    if plot is not None:
        from li_plugins.index_diff.plot import save_plot

        save_plot(found, plot)
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
