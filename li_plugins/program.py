"""A program that the command line becomes: a script or a module, run as ``python`` would run it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A script or module with its arguments, to be run as ``python`` would run it."""

    name: str
    arguments: tuple[str, ...]
    is_module: bool

    def run(self) -> None:
        """Run it as ``__main__``; ``sys.argv`` and ``sys.path[0]`` are what ``python`` would give it."""
        import runpy

        sys.argv = [self.name, *self.arguments]
        # `-P`, `-I` and PYTHONSAFEPATH (3.11) put nothing in front of the path, so there is nothing to replace.
        if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
            sys.path[0] = os.getcwd() if self.is_module else os.path.dirname(os.path.realpath(self.name))
        if self.is_module:
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
        elif os.path.isfile(self.name) and not self.name.endswith(".pyc"):
            self._run_source()
        elif os.path.isfile(self.name):
            runpy.run_path(self.name, run_name="__main__")
        else:
            del sys.path[0]  # runpy puts the folder itself there
            runpy.run_path(os.path.abspath(self.name), run_name="__main__")

    def _run_source(self) -> None:
        """Run a file. Python makes ``__file__`` absolute and leaves ``sys.argv[0]`` alone; runpy has one for both."""
        import builtins
        from importlib.machinery import SourceFileLoader
        from types import ModuleType

        path = os.path.abspath(self.name)
        loader = SourceFileLoader("__main__", path)
        code = loader.source_to_code(loader.get_data(path), path)
        sys.modules["__main__"] = main = ModuleType("__main__")
        vars(main).update(__file__=path, __loader__=loader, __builtins__=builtins, __cached__=None)
        exec(code, vars(main))
