"""Write the tables of the docs that come from code; with --check, fail when one is out of date."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

from li_plugins import hookspecs
from li_plugins.api import Adapter
from li_plugins.host import config

DOCS = Path(__file__).resolve().parent.parent / "docs"


def built_in_adapters() -> list[Adapter]:
    """Return the adapters of our own wheel, found as the host finds them."""
    entry_points = distribution("li-plugins").entry_points.select(group="li_plugins")
    return [adapter for entry in entry_points for adapter in import_module(entry.module).li_plugins_adapters()]


def libraries_table() -> str:
    """Return one row for each built-in adapter: its library and what of it is patched."""
    rows = ["| `enable(...)` | tested releases | what runs on the shared kernels |", "|---|---|---|"]
    for adapter in built_in_adapters():
        name = f"`{adapter.name}` (opt-in)" if adapter.opt_in else f"`{adapter.name}`"
        rows.append(f"| {name} | `{adapter.requires}` | {adapter.summary.partition(': ')[2]} |")
    return "\n".join(rows)


def adapters_table() -> str:
    """Return one row for each target of each built-in adapter."""
    rows = ["| library | releases | function | tested bodies |", "|---|---|---|---|"]
    for adapter in built_in_adapters():
        for target in adapter.targets:
            releases = f"`{target.versions}`" if target.versions else "all"
            bodies = ", ".join(f"`{fingerprint}` ({release})" for release, fingerprint in target.bodies.items())
            rows.append(f"| `{adapter.requires}` | {releases} | `{target.path}` | {bodies or 'any'} |")
    return "\n".join(rows)


def hooks_table() -> str:
    """Return one row for each hook of the extension contract."""
    rows = ["| hook | when |", "|---|---|"]
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("li_plugins_"):
            parameters = ", ".join(inspect.signature(function).parameters)
            text = " ".join((inspect.getdoc(function) or "").split())
            rows.append(f"| `{name}({parameters})` | {text} |")
    return "\n".join(rows)


TABLES = {
    "variables": config.markdown_table,
    "libraries": libraries_table,
    "adapters": adapters_table,
    "hooks": hooks_table,
}


def fill(page: str) -> str:
    """Return the page with each generated block as the code has it."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- generated: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: (?P<name>\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def main() -> int:
    """Fill or check every page; return 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    check = parser.parse_args().check
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        filled = fill(page)
        if filled != page:
            stale.append(path.name)
            if not check:
                path.write_text(filled, encoding="utf-8")
    if stale:
        print(("out of date" if check else "written") + ": " + ", ".join(stale))
    if check and stale:
        print("run `python tools/generate_docs.py` and commit the result")
    return int(bool(check and stale))


if __name__ == "__main__":
    sys.exit(main())
