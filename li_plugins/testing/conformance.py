"""The suite that every adapter runs: what an adapter promises, whatever its library.

An adapter's author subclasses it in a test module, with the library installed::

    from li_plugins.testing.conformance import Conformance


    class TestRagatouille(Conformance):
        adapter = "ragatouille"

It says nothing about numbers: parity with the library is for the adapter's own tests.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest

import li_plugins
from li_plugins.api import Adapter, Decline, Target
from li_plugins.host import patch
from li_plugins.host.config import Config
from li_plugins.host.discovery import GROUP, Discovery
from li_plugins.host.fingerprint import signature_mismatch
from li_plugins.host.names import load
from li_plugins.host.place import innermost
from li_plugins.host.requirement import installed_release

HEAVY = ("torch", "triton", "numpy", "transformers", "jax", "tensorflow")
"""What no manifest may import, its own library aside."""

FLIPS = 30
"""How often the threads' test enables and disables."""


class Conformance:
    """Subclass it, and name the adapter.

    Attributes
    ----------
    adapter
        Name of the adapter.
    preload
        Modules that the processes of the order test may share, so that they need not import them again: the library's
        own dependencies, such as ``"sentence_transformers"``; never the library itself.
    """

    adapter: str
    preload: Sequence[str] = ()

    def arguments(self, target: Target) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and keyword arguments for a call of a target.

        By default an ``object()`` for each parameter that needs one: the library enters its function, and most likely
        raises. Override it to let the library get further.
        """
        parameters = inspect.signature(load(target.path)).parameters.values()
        needed = [parameter for parameter in parameters if parameter.default is parameter.empty]
        positional = [object() for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return positional, {p.name: object() for p in needed if p.kind is p.KEYWORD_ONLY}

    # What the tests share

    @pytest.fixture(autouse=True)
    def _nothing_enabled(self) -> Iterator[None]:
        li_plugins.disable_all()
        yield
        li_plugins.disable_all()

    @pytest.fixture
    def entry_point(self) -> EntryPoint:
        """Return the entry point of the plugin that offers the adapter."""
        offers = Discovery(Config.read()).adapters
        assert self.adapter in offers, f"no plugin offers {self.adapter!r}; offered: {', '.join(offers) or 'none'}"
        plugin = offers[self.adapter].plugin.partition(" of ")[0]
        return next(iter(entry_points(group=GROUP, name=plugin)))

    @pytest.fixture
    def manifest(self) -> Adapter:
        """Return the adapter."""
        return Discovery(Config.read()).adapters[self.adapter].adapter

    @pytest.fixture
    def targets(self, manifest: Adapter) -> list[Target]:
        """Return the targets that the installed release has, their modules imported."""
        release = installed_release(manifest.requires, manifest.since)
        found = [target for target in manifest.targets if release.state == "tested" and release.has(target.versions)]
        for target in found:
            import_module(target.module)
        return found

    # The manifest

    def test_the_installed_release_is_a_tested_one(self, manifest: Adapter) -> None:
        release = installed_release(manifest.requires, manifest.since)
        assert release.state == "tested", release.reason

    def test_the_manifest_names_each_target_once_with_readable_bodies(self, manifest: Adapter) -> None:
        assert manifest.targets, "an adapter without targets patches nothing"
        paths = [(target.path, target.versions) for target in manifest.targets]
        assert len(paths) == len(set(paths))
        for target in manifest.targets:
            known = [*target.bodies.values(), *(body for bodies in target.also.values() for body in bodies)]
            unreadable = [body for body in known if not re.fullmatch("[0-9a-f]{8}", body)]
            assert not unreadable, f"{target.path}: a fingerprint is 8 hex digits; found {unreadable}"

    def test_the_manifest_imports_nothing_heavy(self, manifest: Adapter, entry_point: EntryPoint) -> None:
        code = f"import json, sys, {entry_point.module}; print(json.dumps(sorted(sys.modules)))"
        imported = {name.partition(".")[0] for name in json.loads(_fresh("-c", code).splitlines()[-1])}
        own = {target.module.partition(".")[0] for target in manifest.targets}
        assert not imported & {*HEAVY, *own}

    def test_every_name_of_the_manifest_exists(self, targets: list[Target]) -> None:
        for target in targets:
            for path in filter(None, [target.path, target.replacement, target.explain, *target.also]):
                load(path)

    # The patch

    def test_every_target_is_patched(self, targets: list[Target]) -> None:
        rows = {row.target: row for row in li_plugins.enable(self.adapter).rows if row.adapter == self.adapter}
        refused = [f"{target.path}: {rows[target.path].reason}" for target in targets
                   if rows[target.path].state != "patched"]  # fmt: skip
        assert not refused, "\n".join(refused)

    def test_disabling_gives_back_identical_functions(self, targets: list[Target]) -> None:
        before = _identities(targets)
        for _ in range(2):
            li_plugins.enable(self.adapter)
            now = _identities(targets)
            assert not [path for path in before if now[path] == before[path]], "enabled, but not patched"
            li_plugins.disable_all()
            now = _identities(targets)
            assert not [path for path in before if now[path] != before[path]], "not the same function or code as before"

    def test_enabling_and_disabling_twice_is_once(self, targets: list[Target]) -> None:
        li_plugins.enable(self.adapter)
        once = _identities(targets)
        li_plugins.enable(self.adapter)
        assert _identities(targets) == once
        li_plugins.disable_all()
        original = _identities(targets)
        li_plugins.disable_all()
        assert _identities(targets) == original
        assert all(patch.record_of(load(target.path)) is None for target in targets)

    def test_a_suspension_runs_the_originals_and_ends(self, targets: list[Target]) -> None:
        before = _identities(targets)
        li_plugins.enable(self.adapter)
        with li_plugins.suspended():
            assert _identities(targets) == before
        assert all(patch.record_of(load(target.path)) is not None for target in targets)

    def test_the_signature_and_the_docstring_stay(self, targets: list[Target]) -> None:
        for target in targets:
            assert signature_mismatch(innermost(load(target.path)), load(target.replacement)) is None
        before = {target.path: _appearance(load(target.path)) for target in targets}
        li_plugins.enable(self.adapter)
        assert {target.path: _appearance(load(target.path)) for target in targets} == before

    def test_a_decline_runs_the_original_once(self, targets: list[Target]) -> None:
        for target in targets:
            if isinstance(load(target.path), type):
                continue  # a class is replaced by a class, which cannot decline
            arguments, keywords = self.arguments(target)
            own = _Runs(_code(target))
            with own:
                expected = _outcome(load(target.path), arguments, keywords)
            record = patch.apply(
                self.adapter,
                target,
                _Declines(innermost(load(target.path))),
                version="0",
                untested=True,
                on_decline=lambda record, reason: None,
            )
            try:
                runs = _Runs(record.original.__code__)
                with runs:
                    found = _outcome(load(target.path), arguments, keywords)
            finally:
                patch.undo(record)
            assert runs.entered == own.entered, f"{target.path}: the original ran {runs.entered} times"
            assert record.counters.declines == {"on purpose": 1}
            assert found == expected

    @pytest.mark.allow_fallback(reason="calls with arguments that nothing supports")
    def test_threads_may_call_while_it_is_enabled_and_disabled(self, targets: list[Target]) -> None:
        before = _identities(targets)
        calls = [(load(target.path), *self.arguments(target)) for target in targets]
        expected = [_outcome(*call) for call in calls]
        done = threading.Event()
        surprises: list[str] = []

        def call_all() -> None:
            while not done.is_set():
                for target, call, outcome in zip(targets, calls, expected, strict=True):
                    found = _outcome(*call)
                    if found != outcome:
                        surprises.append(f"{target.path} {found}; without the adapter it {outcome}")
                        return

        def flip() -> None:
            for _ in range(FLIPS):
                li_plugins.enable(self.adapter)
                li_plugins.disable_all()

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            callers = [threading.Thread(target=call_all) for _ in range(2)]
            flippers = [threading.Thread(target=flip) for _ in range(2)]
            for thread in (*callers, *flippers):
                thread.start()
            for thread in flippers:
                thread.join()
            done.set()
            for thread in callers:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        li_plugins.disable_all()
        assert not surprises, surprises[0]
        assert _identities(targets) == before

    def test_the_order_of_import_enable_and_disable_does_not_matter(self) -> None:
        arguments = [argument for name in self.preload for argument in ("--preload", name)]
        _fresh("-m", "li_plugins.testing.orders", self.adapter, *arguments)


class _Identity(NamedTuple):
    """An attribute of a module or class, and the code behind it; equal to another only if they are the same objects."""

    attribute: object
    code: CodeType | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.attribute is other.attribute and self.code is other.code

    def __ne__(self, other: object) -> bool:
        return not self == other


class _Runs:
    """How often a code object was entered by this thread inside a ``with`` block."""

    def __init__(self, code: CodeType | None) -> None:
        self.entered = 0
        self._code = code

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is self._code:
            self.entered += 1

    def __enter__(self) -> None:
        self._former = sys.getprofile()
        sys.setprofile(self._look)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._former)


def _identities(targets: Sequence[Target]) -> dict[str, _Identity]:
    """Return what must be the very same again after an undo: each target in its owner, and its code."""
    found = {}
    for target in targets:
        module, _, qualname = target.path.partition(":")
        *owners, name = qualname.split(".")
        owner: Any = load(f"{module}:{'.'.join(owners)}") if owners else import_module(module)
        found[target.path] = _Identity(vars(owner)[name], _code(target))
    return found


def _code(target: Target) -> CodeType | None:
    """Return the code of the function behind decorators; ``None`` for a class or a C callable."""
    return getattr(inspect.unwrap(load(target.path)), "__code__", None)


def _appearance(function: Callable[..., Any]) -> tuple[Any, ...]:
    return (
        inspect.signature(function),
        function.__doc__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        getattr(function, "__defaults__", None),
        getattr(function, "__kwdefaults__", None),
    )


class _Declines:
    """A replacement with the parameters of a function that always declines."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__signature__ = inspect.signature(function)

    def __call__(self, *arguments: Any, **keywords: Any) -> Decline:
        return Decline("on purpose")


def _outcome(function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """Call a function; return whether it returned, or what it raised."""
    try:
        function(*arguments, **keywords)
    except Exception as error:  # any: the arguments mean nothing to the library, and it says so in its own way
        return f"raised {error!r}"
    return "returned"


def _fresh(*arguments: str) -> str:
    """Run Python in a new process in which nothing is enabled; return what it printed, fail if it failed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LI_PLUGINS")}
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if process.returncode:
        pytest.fail(f"python {' '.join(arguments)}\n{process.stdout}{process.stderr}", pytrace=False)
    return process.stdout
