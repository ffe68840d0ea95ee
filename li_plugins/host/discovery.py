"""The installed plugins: found by entry points, registered one by one, each one's failure contained and named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pluggy import PluginManager

from li_plugins import api, hookspecs
from li_plugins.api import Adapter, Kernel, Target
from li_plugins.host.config import Config

GROUP = "li_plugins"
CONTAINED = (Exception, SystemExit)
"""What a plugin may raise without stopping others: it is a stranger's code, and some modules call ``sys.exit``."""

logger = logging.getLogger("li_plugins")


class Broken(NamedTuple):
    """A plugin that failed, or a part of it that is left out, and why."""

    plugin: str
    reason: str


class Offer(NamedTuple):
    """An adapter and the plugin that it comes from."""

    adapter: Adapter
    plugin: str


class Discovery:
    """The plugins of this environment, loaded once.

    ``adapters`` maps names to offers, in the order of discovery: this distribution's own first, then by the name of the
    distribution and of the entry point, so that the same environment always gives the same answer. ``broken`` names
    every failure, those of later hook calls included. ``plugins`` names the ones that are registered.

    Parameters
    ----------
    config
        Handed to ``li_plugins_configured``.
    """

    def __init__(self, config: Config) -> None:
        self.manager = PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.adapters: dict[str, Offer] = {}
        self.broken: list[Broken] = []
        # Historic: replayed inside each `register` below, so that a plugin that fails at it is known by name.
        self.manager.hook.li_plugins_configured.call_historic(kwargs={"config": config})
        for entry_point in sorted(entry_points(group=GROUP), key=_order):
            self._load(entry_point)

    @property
    def plugins(self) -> list[str]:
        """Names of the registered plugins."""
        return [name for name, plugin in self.manager.list_name_plugin() if plugin is not None]

    def _load(self, entry_point: EntryPoint) -> None:
        name = entry_point.name
        if self.manager.has_plugin(name):
            name = f"{name} of {_distribution(entry_point)}"
        with self._contained(name):
            plugin = entry_point.load()
            if self.manager.is_registered(plugin):
                return  # one distribution seen twice, as through an editable install beside its build folder
            try:
                self.manager.register(plugin, name)
                self.manager.check_pending()
                offered = [_checked(adapter) for _, adapters in self._ask(name, "li_plugins_adapters")
                           for adapter in adapters]  # fmt: skip
            except BaseException:
                if self.manager.has_plugin(name):
                    self.manager.unregister(name=name)
                raise
            for adapter in offered:
                self._add(adapter, name)

    def _add(self, adapter: Adapter, plugin: str) -> None:
        known = self.adapters.setdefault(adapter.name, Offer(adapter, plugin))
        if known.adapter is not adapter:
            self.blame(plugin, f"its adapter {adapter.name!r} is left out: plugin {known.plugin!r} offers one already")

    def blame(self, plugin: str, reason: str) -> None:
        """Record a failure of a plugin and log it, once."""
        failure = Broken(plugin, reason)
        if failure not in self.broken:
            self.broken.append(failure)
            logger.warning("li_plugins: plugin %r: %s", plugin, reason)

    @contextmanager
    def _contained(self, plugin: str) -> Iterator[None]:
        try:
            yield
        except CONTAINED as error:
            logger.debug("li_plugins: plugin %r failed", plugin, exc_info=True)
            self.blame(plugin, f"{type(error).__name__}: {error}")

    def _ask(self, plugin: str, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        """Call one plugin's implementations of a hook: ``(plugin, answer)`` for each answer that is not ``None``."""
        others = [other for name, other in self.manager.list_name_plugin() if name != plugin]
        caller = self.manager.subset_hook_caller(hook, others)
        answers: Any = caller(**arguments)
        if caller.spec is not None and caller.spec.opts.get("firstresult"):
            answers = [] if answers is None else [answers]
        return [(plugin, answer) for answer in answers]

    def ask(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call a hook of every plugin in pluggy's order, one failure not stopping the others."""
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        for plugin in dict.fromkeys(implementation.plugin_name for implementation in reversed(implementations)):
            answers = []
            with self._contained(plugin):
                answers = self._ask(plugin, hook, **arguments)
            yield from answers

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a hook whose answers nobody wants."""
        for _ in self.ask(hook, **arguments):
            pass

    def kernels(self) -> list[Kernel]:
        """Return the kernels that plugins offer; called by the registry of the operations at their first use."""
        found: list[Kernel] = []
        for plugin, kernels in self.ask("li_plugins_kernels"):
            with self._contained(plugin):
                for kernel in kernels:
                    if not isinstance(kernel, Kernel):
                        raise TypeError(f"li_plugins_kernels must return Kernel objects; found {kernel!r}")
                    found.append(kernel)
        return found

    def rank(self, op: str, request: Any, kernels: Sequence[Kernel]) -> Sequence[Kernel] | None:
        """Return the first plugin's ranking of the candidates, or ``None`` when no plugin has an opinion."""
        ranked = self.ask("li_plugins_rank_kernels", op=op, request=request, kernels=kernels)
        return next((answer for _, answer in ranked), None)

    def publish(self) -> Callable[[], None]:
        """Make the plugins' kernels and rankings known to the operations; return the undo."""
        api.kernel_providers.append(self.kernels)
        api.kernel_rankers.append(self.rank)

        def withdraw() -> None:
            api.kernel_providers.remove(self.kernels)
            api.kernel_rankers.remove(self.rank)

        return withdraw


def _distribution(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else ""


def _order(entry_point: EntryPoint) -> tuple[bool, str, str]:
    distribution = _distribution(entry_point)
    return distribution != "li-plugins", distribution, entry_point.name


def _checked(adapter: object) -> Adapter:
    """Return the adapter if its manifest can be read; raise ``TypeError`` or ``ValueError`` that says what is wrong."""
    if not isinstance(adapter, Adapter):
        raise TypeError(f"li_plugins_adapters must return Adapter objects; found {adapter!r}")
    try:
        Requirement(adapter.requires)
    except InvalidRequirement as error:
        raise ValueError(f"adapter {adapter.name!r} requires {adapter.requires!r}: {error}") from error
    try:
        SpecifierSet(f"<{adapter.since}" if adapter.since else "")
    except InvalidSpecifier as error:
        raise ValueError(f"adapter {adapter.name!r} is for releases since {adapter.since!r}: {error}") from error
    for target in adapter.targets:
        if not isinstance(target, Target):
            raise TypeError(f"targets of adapter {adapter.name!r} must be Target objects; found {target!r}")
        try:
            SpecifierSet(target.versions)
        except InvalidSpecifier as error:
            raise ValueError(f"{target.path} has versions {target.versions!r}: {error}") from error
    return adapter
