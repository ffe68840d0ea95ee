"""Who may import whom: section by section what the design says, checked on every import statement."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = sorted(path for path in (ROOT / "adapters").glob("*/*") if (path / "__init__.py").is_file())

HOST_LIBRARIES = {"packaging", "pluggy", "rich"}
OPS_LIBRARIES = {"torch", "triton", "numpy"}
COMPARISON_LIBRARIES = {"torch", "numpy", "rich", "click", "matplotlib"}
OWN_WORDS = ("li_plugins.api", "li_plugins.errors")


def imports(file: Path, source: str | None = None) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports, wherever it does, and whether only a type checker sees it."""
    tree = ast.parse(source if source is not None else file.read_text(), str(file))
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in unseen
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import on line {node.lineno}; say the whole name"
            assert node.module is not None
            # `from li_plugins import api` names a module, `from li_plugins.api import Target` does not
            for alias in node.names:
                yield (
                    (f"{node.module}.{alias.name}" if node.module == "li_plugins" else node.module),
                    id(node) in unseen,
                )


def is_stdlib(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def files(*patterns: str) -> list[Path]:
    found = [file for pattern in patterns for file in sorted(ROOT.glob(pattern))]
    assert found, patterns
    return found


def offences(paths: list[Path], allowed: tuple[str, ...], libraries: set[str], *, types_too: bool = True) -> list[str]:
    """Return every import outside the standard library, the allowed packages and the libraries."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name, for_types in imports(path)
        if (types_too or not for_types)
        and not is_stdlib(name)
        and not within(name, allowed)
        and name.partition(".")[0] not in libraries
    ]


def test_the_gate_knows_the_standard_library_and_the_session():
    assert offences(files("li_plugins/_autoload.py"), ("li_plugins.host.session",), set()) == []
    top = ast.parse((ROOT / "li_plugins/_autoload.py").read_text()).body
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"os", "sys"}


def test_the_facade_imports_the_host_only():
    assert offences(files("li_plugins/__init__.py"), ("li_plugins.host",), set()) == []


def test_shared_words_know_nobody():
    paths = files("li_plugins/api.py", "li_plugins/errors.py", "li_plugins/hookspecs.py")
    assert offences(paths, OWN_WORDS, {"pluggy"}, types_too=False) == []


def test_the_host_knows_neither_torch_nor_operations():
    allowed = ("li_plugins.host", "li_plugins.hookspecs", *OWN_WORDS)
    assert offences(files("li_plugins/host/*.py"), allowed, HOST_LIBRARIES) == []


def test_the_operations_know_neither_host_nor_adapters():
    assert offences(files("li_plugins/ops/**/*.py"), ("li_plugins.ops", *OWN_WORDS), OPS_LIBRARIES) == []


def test_the_comparison_of_indexes_knows_operations_and_no_library_that_it_reads():
    allowed = ("li_plugins.index_diff", "li_plugins.ops", "li_plugins.host.watch", "li_plugins.program", *OWN_WORDS)
    assert offences(files("li_plugins/index_diff/*.py"), allowed, COMPARISON_LIBRARIES) == []


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.name)
def test_a_manifest_imports_nothing_heavy(adapter: Path):
    assert offences([adapter / "__init__.py"], ("li_plugins.api",), set(), types_too=False) == []


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_knows_the_public_doors_and_no_other_adapter(adapter: Path):
    doors = ("li_plugins.api", "li_plugins.errors", "li_plugins.ops", adapter.name)
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(adapter.rglob("*.py"))
        for name, _ in imports(path)
        if name.startswith("li_plugins") and not within(name, doors)
    ]
    assert found == []


def test_nobody_imports_an_adapter():
    names = tuple(adapter.name for adapter in ADAPTERS)
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files("li_plugins/**/*.py")
        for name, _ in imports(path)
        if within(name, names)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", ["torch"]),
        ("def f():\n    from torch.nn import Linear", ["torch.nn"]),
        ("from li_plugins import ops", ["li_plugins.ops"]),
        ("try:\n    import triton.language as tl\nexcept ImportError: pass", ["triton.language"]),
    ],
)
def test_the_walker_sees_imports_wherever_they_hide(source, found):
    assert [name for name, _ in imports(ROOT / "x.py", source)] == found


def test_the_walker_knows_what_only_a_type_checker_sees():
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import numpy"
    assert dict(imports(ROOT / "x.py", source)) == {"typing": False, "torch": True, "numpy": False}
