"""Index real text with colbert-ai and search it, as the library does it and with li-plugins.

Each side builds an index in a fresh process and searches both its own and the other's. Without the plugin colbert-ai
compiles four C++ extensions first, which takes minutes the first time and needs a compiler. It is a check as well: the
exit status is 1 when the sides rank one index differently beyond ties, when their indexes differ in quality, or when a
call that should be patched fell back.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path

import click
from retrieval_demo.collection import Collection, read_collection
from retrieval_demo.errors import DemoError
from rich.console import Console

import li_plugins

HERE = Path(__file__).resolve().parent
ROWS = HERE.parent / "benchmarks" / "results" / "colbert_cpu.csv"
DEPTH = 100


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--data", type=click.Path(path_type=Path), default=HERE / "cranfield",
              help="Folder with a collection in BEIR layout.", show_default="Cranfield, bundled")  # fmt: skip
@click.option("--documents", type=click.IntRange(min=1), default=None,
              help="Keep only the first so many documents.", show_default="all")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "output",
              help="Folder for checkpoint, indexes and results.", show_default="examples/output")  # fmt: skip
@click.option("--record", "rows", type=click.Path(path_type=Path), default=None, is_flag=False, flag_value=ROWS,
              help="Append the figures to a CSV file.", show_default="not; FILE may be left out")  # fmt: skip
def main(data: Path, documents: int | None, output: Path, rows: Path | None) -> None:
    """Run both sides; the exit status says whether they agreed."""
    console = Console(highlight=False)
    try:
        agreed = run(console, read_collection(data, documents), output.resolve(), rows)
    except DemoError as error:
        console.print(f"[bold red]The demo cannot run:[/] {error}", soft_wrap=True)
        raise SystemExit(2) from None
    raise SystemExit(0 if agreed else 1)


def run(console: Console, collection: Collection, output: Path, rows: Path | None) -> bool:
    """Build and search on both sides, report; return whether they agree.

    Raises
    ------
    DemoError
        Something that the demo needs is missing, or a side failed.
    """
    # The plugin is on where this demo turns it on; and colbert-ai runs on the CPU.
    os.environ.pop("LI_PLUGINS", None)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with console.status("Importing colbert-ai and saving the checkpoint"):
        import_libraries()
        from indexed_search.checkpoint import save_checkpoint

        output.mkdir(parents=True, exist_ok=True)
        li_plugins.enable("colbert", strict=True)  # a model of colbert-ai compiles where it is made
        checkpoint = save_checkpoint(output / "colbert-minilm")
        li_plugins.disable_all()
    from indexed_search import agreement, report, sides
    from indexed_search.worker import Job
    from retrieval_demo.record import append

    console.print(f"{len(collection.documents):,} documents, {len(collection.queries):,} queries")

    def job(patched: bool, build: str, search: list[str]) -> Job:
        return Job(patched, output, checkpoint, collection.documents, collection.queries, DEPTH, build, search)

    with sides.progress() as shown:
        off = sides.run(job(False, "off", ["off"]), report.OFF, shown, output / "search-off.log")
        on = sides.run(job(True, "on", ["on", "off"]), report.ON, shown, output / "search-on.log")
        again = sides.run(job(False, "", ["on"]), f"{report.OFF}, the other index", shown, output / "search-again.log")
    findings = report.Findings(
        documents=len(collection.documents),
        queries=len(collection.queries),
        done={report.OFF: off, report.ON: on},
        quality={
            built: {side: agreement.quality(collection, rankings) for side, rankings in searched.items()}
            for built, searched in (
                (report.OFF, {report.OFF: off.rankings["off"], report.ON: on.rankings["off"]}),
                (report.ON, {report.OFF: again.rankings["on"], report.ON: on.rankings["on"]}),
            )
        },
        agreements={
            report.OFF: agreement.compare(on.rankings["off"], off.rankings["off"]),
            report.ON: agreement.compare(on.rankings["on"], again.rankings["on"]),
        },
    )
    console.print(report.found(findings))
    console.print(report.cost(findings))
    results = output / "search-results.json"
    results.write_text(json.dumps(findings.to_dict(), indent=2) + "\n")
    console.print(f"[dim]{results}[/]", soft_wrap=True)
    if rows is not None:
        append(rows, findings.rows())
    problems = findings.problems()
    for problem in problems:
        console.print(f"[bold red]{problem}[/]", soft_wrap=True)
    if not problems:
        console.print("[green]Each index is ranked alike by both sides, but for ties.[/]")
    return not problems


def import_libraries() -> None:
    """Import what the demo needs.

    Raises
    ------
    DemoError
        Something is not installed, or there is no compiler.
    """
    try:
        for name in ("colbert", "faiss"):
            importlib.import_module(name)
    except ImportError as error:
        remedy = r"run `tox run -e demo-search`, or pip install '.\[colbert]' faiss-cpu"
        raise DemoError(f"{error}; {remedy}") from error
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise DemoError("colbert-ai by itself compiles C++, and there is no compiler; install one, or set CXX")


if __name__ == "__main__":
    main()
