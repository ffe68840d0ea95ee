"""Run a side's work in a fresh process and show how it goes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_demo.errors import DemoError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from indexed_search.worker import BUILDING, Done, Job, work


@contextmanager
def progress() -> Iterator[Progress]:
    """Show a bar for each side: its stages, and within the search its queries."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as shown:
        yield shown


def run(job: Job, title: str, shown: Progress, log: Path) -> Done:
    """Do a job in a new process.

    Raises
    ------
    DemoError
        It failed or died; what it printed is in ``log``.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, there, log))
    process.start()
    there.close()
    count = 1 + len(BUILDING) * bool(job.build) + 2 * len(job.search)
    task = shown.add_task(title, total=count)
    begun = -1
    try:
        while True:
            kind, *told = here.recv()
            if kind == "stage":
                begun += 1
                shown.update(task, completed=begun, description=f"{title}: {told[0]}")
            elif kind == "step":
                shown.update(task, completed=begun + told[0] / told[1])
            elif kind == "done":
                shown.update(task, completed=count, description=title)
                return told[0]
            else:
                raise DemoError(f"{title}: {told[0]}; what it printed is in {log}")
    except EOFError:
        process.join()
        said = f"its process ended with {process.exitcode}; what it printed is in {log}"
        raise DemoError(f"{title}: {said}") from None
    finally:
        process.join(timeout=0 if sys.exc_info()[0] else 30)
        if process.is_alive():
            process.terminate()
            process.join()
