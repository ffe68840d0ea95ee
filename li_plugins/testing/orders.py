"""Import, enable and disable an adapter in every order, each order in a process of its own.

``python -m li_plugins.testing.orders NAME`` prints what went wrong, and exits with 1 if anything did. ``--preload``
names modules that all orders share, such as torch: they are imported once, and every process is forked from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import product

import li_plugins
from li_plugins.api import Target
from li_plugins.host.config import Config
from li_plugins.host.discovery import Discovery
from li_plugins.host.names import load
from li_plugins.host.patch import record_of
from li_plugins.host.requirement import installed_release

STEPS = ("import", "enable", "disable")


def orders() -> list[tuple[str, ...]]:
    """Return every sequence of four steps that imports once and enables at least once; shorter ones begin these."""
    return [order for order in product(STEPS, repeat=4) if order.count("import") == 1 and "enable" in order]


def defects(adapter: str, targets: Sequence[Target], order: Sequence[str]) -> Iterator[str]:
    """Take the steps in this process and yield what is not as it should be after each.

    A target is patched when its module was imported and the last switch was ``enable``; else it is the library's own.
    """
    own: dict[str, object] = {}
    imported = enabled = False
    for taken, step in enumerate(order, start=1):
        if step == "import":
            for target in targets:
                import_module(target.module)
            imported = True
        elif step == "enable":
            li_plugins.enable(adapter)
            enabled = True
        else:
            li_plugins.disable_all()
            enabled = False
        for target in targets if imported else ():
            record = record_of(load(target.path))
            if (record is not None) != enabled:
                yield f"{' > '.join(order[:taken])}: {target.path} is {'patched' if record else 'the original'}"
            code = getattr(load(target.path) if record is None else record.original, "__code__", None)
            if own.setdefault(target.path, code) is not code:
                yield f"{' > '.join(order[:taken])}: {target.path} is not the library's own function any more"


def report(adapter: str, targets: Sequence[Target], order: Sequence[str]) -> str:
    """Take the steps in a child process and return what went wrong; empty if nothing did."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            found = "\n".join(defects(adapter, targets, order))
        except BaseException:  # whatever it is, the parent prints it
            found = f"{' > '.join(order)}: {traceback.format_exc()}"
        with os.fdopen(writer, "w") as stream:
            stream.write(found)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        found = stream.read()
    _, status = os.waitpid(child, 0)
    return found or (f"{' > '.join(order)}: the process ended with status {status}" if status else "")


def main() -> int:
    """Read the command line, try every order and print what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter")
    parser.add_argument("--preload", action="append", default=[], metavar="MODULE")
    options = parser.parse_args()
    manifest = Discovery(Config.read()).adapters[options.adapter].adapter
    release = installed_release(manifest.requires, manifest.since)
    targets = [target for target in manifest.targets if release.has(target.versions)]
    for module in options.preload:
        import_module(module)
    early = sorted({target.module for target in targets} & set(sys.modules))
    found = [f"imported before the first step: {', '.join(early)}; preload less"] if early else []
    found += filter(None, (report(options.adapter, targets, order) for order in orders()))
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
