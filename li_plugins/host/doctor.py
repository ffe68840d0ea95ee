"""What a person needs to know when something does not run as expected: versions, GPU, patches, variables, advice."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple

from li_plugins.errors import LiPluginsError
from li_plugins.host.bodies import describe, installed_body, known_bodies
from li_plugins.host.config import VARIABLES, Config
from li_plugins.host.ledger import Desk
from li_plugins.host.report import Row, Status, plain, quoted
from li_plugins.host.session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

GATE_SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"
"""PyTorch's own switch: anything but ``1`` keeps ``import torch`` from calling the environment gate."""

_REMEDY = "update li-plugins, or set LI_PLUGINS_UNTESTED=1 at your own risk"

_PROBE = """
import json, torch
gpus = []
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        gpus.append({"name": found.name, "arch": f"sm_{found.major}{found.minor}"})
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda or torch.version.hip, "gpus": gpus}))
"""


class Library(NamedTuple):
    """A library that an adapter is for: what is installed, what is tested, and why nothing of it is patched."""

    adapter: str
    requires: str
    installed: str
    plugin: str
    reason: str
    """Empty for a tested release."""


@dataclass(frozen=True)
class Examination:
    """What ``doctor`` found; prints as a page.

    Parameters
    ----------
    versions
        Of Python, li-plugins, torch, triton, CUDA and the driver.
    gpus
        ``"name (arch)"`` of each GPU.
    libraries
        One for each adapter.
    unknown
        The names in ``LI_PLUGINS`` that nobody offers.
    status
        The targets; those whose library is not imported were judged by the installed files.
    variables
        Value of each variable of ours, and of PyTorch's switch; ``None`` when unset.
    advice
        What to do, most urgent first.
    """

    versions: Mapping[str, str]
    gpus: tuple[str, ...]
    libraries: tuple[Library, ...]
    unknown: tuple[str, ...]
    status: Status
    variables: Mapping[str, str | None]
    advice: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether no patch is refused, no plugin broken, and every adapter known that ``LI_PLUGINS`` names."""
        return not self.status.failures and not self.unknown

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, ready for JSON."""
        return {
            "versions": dict(self.versions),
            "gpus": list(self.gpus),
            "libraries": [library._asdict() for library in self.libraries],
            **self.status.to_dict(),
            "variables": dict(self.variables),
            "advice": list(self.advice),
            "healthy": self.healthy,
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        meanings = {variable.name: variable.meaning.replace("`", "") for variable in VARIABLES}
        meanings[GATE_SWITCH] = "PyTorch's own switch; anything but 1 turns LI_PLUGINS off too."
        return Group(
            _table([*self.versions.items(), *(("GPU", gpu) for gpu in self.gpus or ("none",))]),
            "\n[bold]libraries[/]",
            _table([("adapter", "installed", "tested", "plugin", "remark"),
                    *((found.adapter, found.installed or "no", found.requires, found.plugin,
                       found.reason if found.installed else "")
                      for found in self.libraries)], header=True),
            "\n[bold]targets[/]",
            self.status,
            "\n[bold]variables[/]",
            _table([(name, value if value is not None else "unset", meanings[name])
                    for name, value in self.variables.items()]),
            "\n[bold]what to do[/]",
            *(quoted(f"* {line}") for line in self.advice or ("nothing: all is well",)),
        )  # fmt: skip

    def __str__(self) -> str:
        return plain(self.__rich__())


def examine(session: Session, *, imports: bool = False) -> Examination:
    """Examine this environment.

    Torch is looked at in a process of its own: it may be broken, and it is not ours to import.

    Parameters
    ----------
    session
        The session whose adapters are examined.
    imports
        Import the libraries and patch them, so that the gates decide; otherwise bodies are compared with the files.
    """
    troubles = _import_everything(session) if imports else {}
    torch = _probe_torch()
    desks = session.desks()
    status = session.status()
    rows = tuple(
        row._replace(reason=troubles[row.target]) if row.target in troubles else _judged(row, desks)
        for row in status.rows
    )
    status = Status(rows, status.notes, status.declines)
    variables = {name: os.environ.get(name) for name in (*(variable.name for variable in VARIABLES), GATE_SWITCH)}
    versions = {
        "python": f"{platform.python_version()} ({platform.platform()})",
        "li-plugins": _version("li-plugins"),
        "torch": torch.get("torch") or torch["error"],
        "triton": _version("triton"),
        "CUDA": torch.get("cuda") or "none: a CPU build of torch",
        "driver": _driver(),
    }
    return Examination(
        versions=versions,
        gpus=tuple(f"{gpu['name']} ({gpu['arch']})" for gpu in torch.get("gpus", ())),
        libraries=tuple(Library(desk.adapter.name, desk.adapter.requires, desk.release.version, desk.plugin,
                                desk.release.reason) for desk in desks),
        unknown=tuple(name for name in Config.read().names if name not in [desk.adapter.name for desk in desks]),
        status=status,
        variables=variables,
        advice=tuple(_advice(status, variables, torch)),
    )  # fmt: skip


def _import_everything(session: Session) -> dict[str, str]:
    """Patch for real; return what is wrong with the libraries that cannot be imported, by target."""
    with suppress(LiPluginsError):  # strict mode: the rows say the same
        session.enable()
    troubles = {}
    for seat in [seat for desk in session.desks() for seat in desk.seats]:
        try:
            import_module(seat.target.module)
        except Exception as error:  # a library's own trouble, whatever it is, is a finding
            if seat.error is None:
                troubles[seat.target.path] = f"its module cannot be imported: {type(error).__name__}: {error}"
    return troubles


def _judged(row: Row, desks: list[Desk]) -> Row:
    """Say of a target that is not imported whether the body in the files is known."""
    if not row.target or row.state not in ("armed", "off"):
        return row
    target = next(seat.target for desk in desks for seat in desk.seats if seat.target.path == row.target)
    verdicts = []
    for path, known in known_bodies(target).items():
        if not known:
            continue
        body = installed_body(path)
        if body is None:
            verdicts.append(f"only an import can tell the body of {path}: li-plugins doctor --import")
        elif body not in known and not Config.read().untested:
            reason = f"the body of {path} is {body}; known: {describe(known)}; {_REMEDY}"
            return row._replace(state="refused", reason=reason)
    return row._replace(reason="; ".join([row.reason, *verdicts]))


def _advice(status: Status, variables: Mapping[str, str | None], torch: Mapping[str, Any]) -> list[str]:
    advice = [f"{row.adapter}: {row.target or 'the plugin'} is {row.state}: {row.reason}" for row in status.failures]
    advice += [f"{row.adapter}: {row.reason}" for row in status.rows if row.state == "out-of-range"]
    advice += [f"{row.target}: {row.reason}" for row in status.rows if "cannot be imported" in row.reason]
    asked = Config.read().switch in ("all", "some")
    if "error" in torch:
        advice.append("torch cannot be imported here: repair it first")
    if asked and variables[GATE_SWITCH] not in (None, "1"):
        advice.append(f"LI_PLUGINS has no effect with {GATE_SWITCH}={variables[GATE_SWITCH]}: use `li-plugins run`")
    if all(row.state in ("absent", "broken") and not row.target for row in status.rows):
        advice.append("no supported library is installed: in the clone of li-plugins, pip install '.[pylate]'")
    return [*advice, *status.notes]


def _probe_torch() -> dict[str, Any]:
    """Ask a process that imports torch, without us, about it and its GPUs; its trouble is in ``error``."""
    environment = {name: value for name, value in os.environ.items() if name != "LI_PLUGINS"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return {"error": "importing torch and looking for GPUs took more than two minutes"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": f"cannot be imported: {last[0]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _driver() -> str:
    """Return the version of NVIDIA's driver; only ``nvidia-smi`` tells it without a CUDA context."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found (no nvidia-smi)"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "nvidia-smi does not answer"
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else "nvidia-smi finds none"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _table(lines: list[tuple[str, ...]], *, header: bool = False) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=header, header_style="bold", padding=(0, 2, 0, 0))
    head, body = (lines[0], lines[1:]) if header else (("",) * len(lines[0]), lines)
    for name in head:
        table.add_column(name, overflow="fold")
    for line in body:
        table.add_row(*map(quoted, line))
    return table
