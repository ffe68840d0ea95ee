"""Show what li-plugins does to PyLate on real text: the same rankings, in less time and less memory.

Encodes a collection once, then retrieves exactly, reranks and trains, each with the plugin off and on, and compares.
It is a check as well: the exit status is 1 when rankings differ beyond ties, scores beyond 1e-3, or when a call that
should be patched fell back to PyLate.
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

import click
from retrieval_demo.collection import read_collection
from retrieval_demo.errors import DemoError
from rich.console import Console

import li_plugins

HERE = Path(__file__).resolve().parent
ROWS = HERE.parent / "benchmarks" / "results" / "demo_cranfield.csv"


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--data", type=click.Path(path_type=Path), default=HERE / "cranfield",
              help="Folder with a collection in BEIR layout.", show_default="Cranfield, bundled")  # fmt: skip
@click.option("--model", default=None, help="Folder or hub id of a model for pylate.models.ColBERT.",
              show_default="MiniLM with an orthogonal head")  # fmt: skip
@click.option("--device", default=None, help="Where to compute.", show_default="cuda if there is one, else cpu")
@click.option("--documents", type=click.IntRange(min=1), default=None,
              help="Keep only the first so many documents.", show_default="all")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "output",
              help="Folder for results, model and embeddings.", show_default="examples/output")  # fmt: skip
@click.option("--record", "rows", type=click.Path(path_type=Path), default=None, is_flag=False, flag_value=ROWS,
              help="Append the figures to a CSV file.", show_default="not; FILE may be left out")  # fmt: skip
def main(
    data: Path, model: str | None, device: str | None, documents: int | None, output: Path, rows: Path | None
) -> None:
    """Run the demo; the exit status says whether both sides agreed."""
    console = Console(highlight=False)
    try:
        agreed = run(console, data=data, source=model, device=device, limit=documents, output=output, rows=rows)
    except DemoError as error:
        console.print(f"[bold red]The demo cannot run:[/] {error}", soft_wrap=True)
        raise SystemExit(2) from None
    raise SystemExit(0 if agreed else 1)


def run(
    console: Console,
    *,
    data: Path,
    source: str | None,
    device: str | None,
    limit: int | None,
    output: Path,
    rows: Path | None,
) -> bool:
    """Encode, measure every stage on both sides, report; return whether the sides agree.

    Raises
    ------
    DemoError
        Something that the demo needs is missing; the message says what to do.
    """
    started = time.monotonic()
    collection = read_collection(data, limit)
    with console.status("Importing PyLate (its own imports take a while)"):
        import_libraries()
    from retrieval_demo.experiment import default_device, measure, prepare
    from retrieval_demo.plot import save_plot
    from retrieval_demo.record import record
    from retrieval_demo.report import introduce, print_report

    li_plugins.enable_all()
    if not any(row.state == "patched" for row in li_plugins.status().rows):
        console.print(li_plugins.status())
        raise DemoError("nothing of PyLate is patched; the table above says why")

    output.mkdir(parents=True, exist_ok=True)
    device = device or default_device()
    introduce(console, collection, source, device)
    inputs = prepare(console, collection, source, device, output)
    findings = measure(console, collection, inputs)

    print_report(console, findings)
    data_file, plot_file = output / "results.json", output / "results.png"
    data_file.write_text(json.dumps(findings.to_dict(li_plugins.status().to_dict()), indent=2) + "\n")
    save_plot(findings, plot_file)
    if rows is not None:
        record(rows, findings, time.monotonic() - started)
    console.print(f"[dim]{data_file}\n{plot_file}[/]", soft_wrap=True)
    return not findings.problems()


def import_libraries() -> None:
    """Import PyLate, and what else the demo needs.

    Raises
    ------
    DemoError
        One of them is not installed.
    """
    try:
        for name in ("pylate.models", "sklearn", "matplotlib"):
            importlib.import_module(name)
    except ImportError as error:
        remedy = r"run `tox run -e demo`, or pip install '.\[pylate]' matplotlib"
        raise DemoError(f"{error}; {remedy}") from error


if __name__ == "__main__":
    main()
