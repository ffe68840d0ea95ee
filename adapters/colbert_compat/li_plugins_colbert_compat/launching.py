"""A process that dies ends the run, and does not let it wait forever.

``colbert/infra/launcher.py``: ``Launcher.launch`` starts a process for each rank and then takes an answer of each from
a queue, without a look at the processes. One that raised, or was killed when memory ran out, never answers.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from queue import Empty
from typing import Any

import torch
from colbert.infra.config import BaseConfig, RunConfig, RunSettings
from colbert.infra.launcher import setup_new_process
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

from li_plugins.api import Decline, carried

SECONDS = 1.0
"""How long an answer is waited for before the processes are looked at."""
GRACE = 10.0
"""Seconds that a process has to end when it is asked to."""


def launch(self: Any, custom_config: Any, *args: Any) -> Any:
    """Run ``self.callee`` in a process for each rank; return what rank 0 returned, or all of them if ``return_all``.

    Raises
    ------
    torch.multiprocessing.ProcessExitedException
        One of them ended before it returned. The others were stopped.
    """
    if not isinstance(custom_config, BaseConfig) or not isinstance(custom_config, RunSettings) or not self.nranks:
        return Decline("no configuration of a run, or no rank: the library's own error is the answer")
    answers: Any = multiprocessing.Queue()
    # not of the global generator: a seed must not give two runs on one machine the same port
    port = str(12355 + random.SystemRandom().randint(0, 1000))
    processes: list[Any] = []
    callee = carried(self.callee)
    for rank in range(self.nranks):
        config = type(custom_config).from_existing(custom_config, self.run_config, RunConfig(rank=rank))
        inputs = (callee, port, answers, config, *args)
        processes.append(multiprocessing.Process(target=setup_new_process, args=inputs))
    torch.cuda.empty_cache()
    try:
        for process in processes:
            print("#> Starting...")
            process.start()
        returned = _collect(answers, processes)
    except BaseException:
        _stop(processes)
        raise
    for process in processes:
        process.join()
        print("#> Joined...")
    return returned if self.return_all else returned[0]


def _collect(answers: Any, processes: Sequence[Any]) -> list[Any]:
    """Return what the ranks returned, in their order; raise when one has ended without an answer."""
    found: dict[int, Any] = {}
    while len(found) < len(processes):
        # before the wait: what they sent has arrived by then
        ended = [rank for rank, process in enumerate(processes) if rank not in found and not process.is_alive()]
        try:
            rank, value = answers.get(timeout=SECONDS)
        except Empty:
            if ended:
                raise _lost(ended[0], processes) from None
        else:
            found[rank] = value
    return [found[rank] for rank in range(len(processes))]


def _lost(rank: int, processes: Sequence[Any]) -> ProcessExitedException:
    process = processes[rank]
    code = process.exitcode
    name = signal.Signals(-code).name if code < 0 else None
    if name is None:
        how = f"ended with exit code {code}" + (": what it raised is printed above" if code else "")
    else:
        how = f"was killed by {name}" + (", as the kernel does when memory runs out" if name == "SIGKILL" else "")
    message = f"rank {rank} of {len(processes)} (process {process.pid}) {how}; it returned nothing, the run was stopped"
    return ProcessExitedException(message, error_index=rank, error_pid=process.pid, exit_code=code, signal_name=name)


def _stop(processes: Sequence[Any]) -> None:
    """End the processes that live: the others of a rank that died wait for it at the next barrier."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        if process.is_alive():
            process.join(GRACE)
        if process.is_alive():
            process.kill()
            process.join()
