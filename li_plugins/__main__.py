"""The command line: ``li-plugins``, the same as ``python -m li_plugins``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from li_plugins.errors import BadInput, LiPluginsError, UnknownAdapter
from li_plugins.index_diff.command import index_diff
from li_plugins.program import Program

if TYPE_CHECKING:
    from li_plugins.api import Target
    from li_plugins.host.session import Session
    from li_plugins.ops.maxsim.tuning_search import Outcome

SOMETHING_WRONG, BAD_USAGE = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="li-plugins", prog_name="li-plugins", message="%(prog)s %(version)s")
def cli() -> None:
    """Fused late-interaction kernels behind the libraries that you already use."""


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> int:
    """Show what this environment would patch.

    That is: what a program finds that is started here and imports torch. No library is imported.
    """
    found = _session_of_this_environment().status()
    _show(found, found.to_dict(), as_json)
    return SOMETHING_WRONG if found.failures else 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--import", "imports", is_flag=True, help="Import the libraries and patch them for real; slow.")
def doctor(as_json: bool, imports: bool) -> int:
    """Show versions, refused patches, and what to do.

    Also the GPU, the libraries, broken plugins and every variable. Without --import the bodies of the targets are read
    from the installed files, and no library is imported. The exit code is 1 when a patch is refused or a plugin is
    broken.
    """
    from li_plugins.host.doctor import examine

    found = examine(_session_of_this_environment(), imports=imports)
    _show(found, found.to_dict(), as_json)
    return 0 if found.healthy else SOMETHING_WRONG


@cli.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[--adapters NAMES] [-m]",
)
@click.option(
    "--adapters", metavar="NAMES", help="What LI_PLUGINS may say: names separated by commas, 0, or 1, the default."
)
@click.option("-m", "is_module", is_flag=True, help="Run a module, as `python -m` does.")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(adapters: str | None, is_module: bool, program: str, arguments: tuple[str, ...]) -> Program:
    """Run a program with the adapters enabled.

    It runs as python would run it; its child processes have the adapters too. LI_PLUGINS=0 in the environment still
    keeps everything off.
    """
    if not is_module and not os.path.exists(program):
        raise click.UsageError(f"there is no file {program!r}; to run a module say: run -m {program}")
    from li_plugins.host.config import Config, spelled
    from li_plugins.host.session import SESSION

    asked = Config.read({"LI_PLUGINS": adapters}) if adapters is not None else Config.read()
    if adapters is not None and asked.switch == "unset":
        raise click.BadParameter(f"{adapters!r} names no adapter; say 0 for none, 1 for all", param_hint="--adapters")
    if "off" in (asked.switch, Config.read().switch):
        os.environ["LI_PLUGINS"] = "0"
    else:
        everything = asked.switch != "some"
        SESSION.enable(asked.names)  # an unknown name ends here, before the environment is touched
        if everything:
            SESSION.enable()
        os.environ["LI_PLUGINS"] = spelled(everything, asked.names)
    return Program(program, arguments, is_module)


@cli.command()
@click.argument("target", metavar="MODULE:NAME")
@click.argument("settings", metavar="[PARAMETER=VALUE]...", nargs=-1)
@click.option("--queries", metavar="SHAPE", help="Shape of the first parameter named queries...: 4,32,128")
@click.option("--documents", metavar="SHAPE", help="Shape of the first parameter named documents...: 8,180,128")
@click.option("--dtype", default="float32", show_default=True, help="Dtype of the embeddings.")
@click.option("--device", help="Device of the tensors; the GPU if there is one.")
@click.option("--grad", is_flag=True, help="The embeddings require a gradient.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    target: str,
    settings: tuple[str, ...],
    queries: str | None,
    documents: str | None,
    dtype: str,
    device: str | None,
    grad: bool,
    as_json: bool,
) -> int:
    r"""Tell what a call would run, and why.

    The library is imported and patched, nothing is computed. Other parameters are shapes or Python literals:
    documents_mask=8x180 backend="'torch'". Masks are boolean tensors. Example:

    \b
    li-plugins explain pylate.scores.colbert:colbert_scores \
        --queries 4,32,128 --documents 8,180,128 --dtype bfloat16
    """
    from li_plugins.host.explain import explain as explain_call
    from li_plugins.host.names import load
    from li_plugins.host.session import SESSION

    _check_path(target)
    names = [desk.adapter.name for desk in SESSION.desks() for item in desk.adapter.targets if item.path == target]
    if not names:
        raise click.BadParameter(f"no adapter names {target}; see `li-plugins doctor`", param_hint="MODULE:NAME")
    SESSION.enable(names)
    try:
        function = load(target)
    except (ImportError, AttributeError) as error:
        raise click.ClickException(f"{target} is not there: {type(error).__name__}: {error}") from error
    shapes = {"queries": queries, "documents": documents}
    arguments = _arguments(function, {k: v for k, v in shapes.items() if v}, settings, dtype, device, grad)
    found = explain_call(SESSION, function, (), arguments)
    _show(str(found), found.to_dict(), as_json)
    return 0 if found.state == "patched" else SOMETHING_WRONG


def _arguments(
    function: Any, shapes: dict[str, str], settings: tuple[str, ...], dtype: str, device: str | None, grad: bool
) -> dict[str, Any]:
    """Build the call: tensors of the shapes that were given, literals as they are."""
    import ast
    import inspect
    import re

    parameters = inspect.signature(function).parameters
    values: dict[str, str] = {}
    for start, shape in shapes.items():
        name = next((name for name in parameters if name.startswith(start)), None)
        if name is None:
            raise click.UsageError(f"no parameter begins with {start!r}; there are: {', '.join(parameters)}")
        values[name] = shape
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in parameters:
            raise click.UsageError(f"{setting!r} is not PARAMETER=VALUE with one of: {', '.join(parameters)}")
        values[name] = value
    if not values:
        return {}

    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's own words for what is not there
        reason = str(error).partition("\n")[0]
        raise click.BadParameter(f"no tensor can be on {device!r}: {reason}", param_hint="--device") from error
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise click.BadParameter(f"{dtype!r} is not a dtype of torch", param_hint="--dtype")

    def tensor(name: str, shape: str) -> torch.Tensor:
        sizes = [int(size) for size in re.split("[,x]", shape)]
        if name.endswith("mask"):
            return torch.ones(sizes, dtype=torch.bool, device=device)
        return torch.empty(sizes, dtype=kind, device=device, requires_grad=grad and kind.is_floating_point)

    is_shape = re.compile(r"\d+([,x]\d+)+").fullmatch
    try:
        built = {name: tensor(name, value) if is_shape(value) else ast.literal_eval(value)
                 for name, value in values.items()}  # fmt: skip
    except (ValueError, SyntaxError) as error:
        raise click.UsageError(f"a value is neither a shape nor a Python literal: {error}") from error
    try:
        inspect.signature(function).bind(**built)
    except TypeError as error:
        raise click.UsageError(
            f"{error}; a method is explained in Python: li_plugins.explain(it.method, ...)"
        ) from error
    return built


_COUNT = click.IntRange(min=1)


@cli.command()
@click.option("--queries", type=_COUNT, default=256, show_default=True, help="Queries of a batch.")
@click.option("--documents", type=_COUNT, default=512, show_default=True, help="Documents, or candidates of a query.")
@click.option("--query-length", type=_COUNT, default=32, show_default=True, help="Tokens of a query.")
@click.option("--document-length", type=_COUNT, default=180, show_default=True, help="Tokens of a document.")
@click.option("--dim", "width", type=_COUNT, default=128, show_default=True, help="Numbers of a token's embedding.")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True,
    help="Dtype of the embeddings.",
)  # fmt: skip
@click.option("--candidates", is_flag=True, help="Each query has documents of its own, as in distillation.")
@click.option("--dry-run", is_flag=True, help="Measure, and store nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tune(dtype: str, dry_run: bool, as_json: bool, **sizes: Any) -> int:
    """Measure MaxSim's blocks on this GPU.

    Blocks that are at least 3 % faster than the built-in ones for this shape are stored where LI_PLUGINS_TUNING says;
    programs that start later use them for shapes alike. It takes a minute or two, most of it compilation; let nothing
    else run on the GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise click.UsageError("tune measures on a CUDA device, and torch finds none; `li-plugins doctor` says more")
    try:
        from li_plugins.ops.maxsim import tuning_file, tuning_run, tuning_search
    except ImportError as error:
        raise click.UsageError(f"tune measures Triton's kernels, which cannot be imported: {error}") from error
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shape = tuning_run.Shape(dtype=getattr(torch, dtype), **sizes)
    device = torch.device("cuda", torch.cuda.current_device())
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as progress:
        bars: dict[str, Any] = {}

        def on_trial(phase: str, row: Mapping[str, int | None]) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task("", total=tuning_search.most_trials(phase))
            progress.update(bars[phase], advance=1, description=f"{tuning_run.NAMES[phase]}: {tuning_run.cut(row)}")

        outcomes = tuning_run.tune(shape, device, dry_run=dry_run, on_trial=on_trial)
        for phase, bar in bars.items():
            progress.update(bar, completed=tuning_search.most_trials(phase), description=tuning_run.NAMES[phase])
    path = None if dry_run or not any(outcome.is_better for outcome in outcomes) else tuning_file.location()
    _show_tuned(outcomes, path, torch.cuda.get_device_name(device), as_json)
    return 0


def _show_tuned(outcomes: Sequence[Outcome], path: str | None, gpu: str, as_json: bool) -> None:
    """Print what was measured: by phase the built-in blocks, the best ones, and what was stored."""
    from li_plugins.ops.maxsim import tuning_run

    if as_json:
        rows = [tuning_run.as_dict(outcome, stored=path is not None and outcome.is_better) for outcome in outcomes]
        click.echo(json.dumps({"gpu": gpu, "file": path, "rows": rows}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=gpu)
    for title in ("kernel", "built-in", "ms", "best", "ms", "gain"):
        table.add_column(title, justify="right" if title in ("ms", "gain") else "left", overflow="fold")
    for outcome in outcomes:
        best = tuning_run.cut(outcome.best) if outcome.best != outcome.builtin else "the built-in"
        times = f"{outcome.builtin_ms:.4f}", f"{outcome.best_ms:.4f}"
        builtin = tuning_run.cut(outcome.builtin)
        table.add_row(tuning_run.NAMES[outcome.phase], builtin, times[0], best, times[1], f"{outcome.gain:.1%}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    better = sum(outcome.is_better for outcome in outcomes)
    if path is not None:
        click.echo(f"{better} stored in {path}; programs that start from now on use them for shapes alike.")
    else:
        click.echo(f"Nothing is stored: {'this is a dry run' if better else 'no row is 3 % faster'}.")


cli.add_command(index_diff)


@cli.command()
@click.argument("what", metavar="ADAPTER|MODULE:NAME")
def fingerprint(what: str) -> int:
    """Print the bodies found beside those known.

    The library is imported. The exit code is 1 when a body is not known.
    """
    from li_plugins.host.session import SESSION

    desks = {desk.adapter.name: desk for desk in SESSION.desks()}
    if ":" in what:
        _check_path(what)
        return _print_fingerprint(
            what, _bodies([t for desk in desks.values() for t in desk.adapter.targets]).get(what, {})
        )
    if what not in desks:
        raise UnknownAdapter(what, desks)
    desk = desks[what]
    click.echo(f"{what}: tested {desk.adapter.requires}, installed {desk.release.version or 'nothing'}")
    if desk.release.state == "absent":
        return SOMETHING_WRONG
    bodies = _bodies([seat.target for seat in desk.seats])
    return max([_print_fingerprint(path, known) for path, known in bodies.items()], default=0)


def _bodies(targets: Sequence[Target]) -> dict[str, dict[str, str]]:
    """Return the known bodies by path, targets first; what is a helper too is shown as a target."""
    from li_plugins.host.bodies import known_bodies

    found = {target.path: known_bodies(target)[target.path] for target in targets}
    for target in targets:
        for path, known in known_bodies(target).items():
            found.setdefault(path, known)
    return found


def _print_fingerprint(path: str, known: Mapping[str, str]) -> int:
    from li_plugins.host.bodies import describe
    from li_plugins.host.fingerprint import fingerprint
    from li_plugins.host.names import load
    from li_plugins.host.patch import original

    try:
        found = fingerprint(original(load(path)))
    except (ImportError, AttributeError, BadInput) as error:  # not in this release, or nothing to read
        click.echo(f"{path}  none  {type(error).__name__}: {error}")
        return SOMETHING_WRONG
    if not known:
        click.echo(f"{path}  {found}  no adapter lists a body of it")
        return 0
    if found not in known:
        click.echo(f"{path}  {found}  unknown; known bodies: {describe(known)}")
        return SOMETHING_WRONG
    click.echo(f"{path}  {found}  known{f' ({known[found]})' if known[found] else ''}")
    return 0


def _check_path(path: str) -> None:
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise BadInput("a target reads module:qualified.name", repr(path), "see `li-plugins doctor` for their names")


def _session_of_this_environment() -> Session:
    """Return the session as a program finds it that imports torch: enabled if ``LI_PLUGINS`` says so."""
    from li_plugins.host.session import SESSION

    with suppress(LiPluginsError):  # strict mode: the status tells the same and more
        SESSION.enable_from_environment()
    return SESSION


def _show(found: object, data: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(found)
    else:
        click.echo(str(found))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 when something is wrong, 2 for bad usage and unknown names."""
    try:
        outcome = cli.main(arguments, prog_name="li-plugins", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except LiPluginsError as error:
        click.echo(f"li-plugins: {error}", err=True)
        sys.exit(BAD_USAGE if isinstance(error, (UnknownAdapter, BadInput)) else SOMETHING_WRONG)
    if not isinstance(outcome, Program):
        sys.exit(outcome or 0)
    outcome.run()  # outside of click, which would swallow what python shows of an exception


if __name__ == "__main__":
    main()
