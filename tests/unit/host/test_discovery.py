"""Plugins: found, checked, and contained one by one."""

from __future__ import annotations

import logging
import sys

import pytest

from li_plugins import api
from li_plugins.host.config import Config
from li_plugins.host.discovery import Discovery

GOOD = """
@hookimpl
def li_plugins_adapters():
    return [Adapter("{name}", "{name}lib>=1", [Target("{name}lib:f", "{name}_replacements:f")])]
"""


def discover() -> Discovery:
    return Discovery(Config())


def reasons(discovery: Discovery) -> dict[str, str]:
    return dict(discovery.broken)


def test_adapters_are_found_without_importing_library_or_replacements(site):
    site.plugin("good", GOOD.format(name="good"))
    site.module("goodlib", "raise SystemExit('imported')")
    discovery = discover()
    offer = discovery.adapters["good"]
    assert offer.plugin == "good"
    assert offer.adapter.targets[0].path == "goodlib:f"
    assert "good" in discovery.plugins
    assert discovery.broken == []
    assert "goodlib" not in sys.modules


BROKEN = {
    "import_error": ("import nothing_of_that_name", "ModuleNotFoundError"),
    "system_exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "misspelt_hook": ("@hookimpl\ndef li_plugins_adapter(): return []", "unknown hook"),
    "wrong_argument": ("@hookimpl\ndef li_plugins_adapters(config): return []", "PluginValidationError"),
    "raises": ("@hookimpl\ndef li_plugins_adapters(): 1 / 0", "ZeroDivisionError"),
    "no_list": ("@hookimpl\ndef li_plugins_adapters(): return 3", "TypeError"),
    "no_adapter": ("@hookimpl\ndef li_plugins_adapters(): return [{'name': 'x'}]", "must return Adapter objects"),
    "generator": ("@hookimpl\ndef li_plugins_adapters():\n    yield Adapter('x', 'x', [])\n    1 / 0", "ZeroDivision"),
    "bad_requirement": (
        "@hookimpl\ndef li_plugins_adapters(): return [Adapter('x', 'x >>> 1', [])]",
        "requires 'x >>>",
    ),
    "bad_target": ("@hookimpl\ndef li_plugins_adapters(): return [Adapter('x', 'x', ['x:f'])]", "must be Target"),
    "bad_path": (
        "@hookimpl\ndef li_plugins_adapters(): return [Adapter('x', 'x', [Target('x.f', 'y:f')])]",
        "must read",
    ),
    "bad_since": (
        "@hookimpl\ndef li_plugins_adapters(): return [Adapter('x', 'x', [Target('x:f', 'y:f')], since='soon')]",
        "since 'soon'",
    ),
    "bad_versions": (
        "@hookimpl\ndef li_plugins_adapters(): return [Adapter('x', 'x', [Target('x:f', 'y:f', versions='new')])]",
        "versions 'new'",
    ),
    "configured": ("@hookimpl\ndef li_plugins_configured(config): config.nothing", "AttributeError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_contained_named_and_logged_once(site, kind, caplog):
    source, says = BROKEN[kind]
    site.plugin("a_broken", source)
    site.plugin("b_good", GOOD.format(name="b_good"))
    discovery = discover()
    assert says in reasons(discovery)["a_broken"]
    assert "a_broken" not in discovery.plugins
    assert "x" not in discovery.adapters
    assert "b_good" in discovery.adapters
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "a_broken" in warnings[0].getMessage()


def test_keyboard_interrupt_is_the_users(site):
    site.plugin("interrupting", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover()


def test_of_two_adapters_with_one_name_the_first_wins_and_the_second_is_named(site):
    site.plugin("a_first", GOOD.format(name="same"))
    site.plugin("b_second", GOOD.format(name="same") + "\n@hookimpl\ndef li_plugins_kernels(): return []")
    discovery = discover()
    assert discovery.adapters["same"].plugin == "a_first"
    assert "plugin 'a_first' offers one already" in reasons(discovery)["b_second"]
    assert "b_second" in discovery.plugins


def test_our_own_distribution_comes_first(site):
    site.plugin("aaa", GOOD.format(name="same"))
    site.module("built_in_plugin", "from li_plugins.api import *\n" + GOOD.format(name="same"))
    site.distribution("li-plugins", entry_points={"zzz": "built_in_plugin"})  # stands before the real one on the path
    discovery = discover()
    assert discovery.adapters["same"].plugin == "zzz"


def test_two_distributions_may_use_one_entry_point_name(site):
    site.plugin("twin", GOOD.format(name="one"))
    site.module("other_plugin", "from li_plugins.api import *\n" + GOOD.format(name="two"))
    site.distribution("zz-other", entry_points={"twin": "other_plugin"})
    discovery = discover()
    assert {"one", "two"} <= set(discovery.adapters)
    assert discovery.adapters["two"].plugin == "twin of zz-other"


def test_one_plugin_seen_twice_is_one(site):
    site.plugin("once", GOOD.format(name="once"))
    site.distribution("build-folder", entry_points={"again": "once_plugin"})
    discovery = discover()
    assert discovery.broken == []
    assert [name for name in discovery.plugins if name in ("once", "again")] == ["again"]


def test_configured_is_replayed_to_each_plugin(site):
    site.plugin("hears", "seen = []\n@hookimpl\ndef li_plugins_configured(config): seen.append(config)")
    config = Config(log="info")
    Discovery(config)
    assert sys.modules["hears_plugin"].seen == [config]


def test_a_failing_event_hook_does_not_keep_others_from_hearing(site):
    site.plugin("deaf", "@hookimpl(tryfirst=True)\ndef li_plugins_declined(target, reason): raise ValueError('ouch')")
    site.plugin("hears", "seen = []\n@hookimpl\ndef li_plugins_declined(reason): seen.append(reason)")
    discovery = discover()
    for _ in range(2):
        discovery.notify("li_plugins_declined", target=None, reason="because")
    assert sys.modules["hears_plugin"].seen == ["because", "because"]
    assert discovery.broken == [("deaf", "ValueError: ouch")]


KERNELS = """
@hookimpl
def li_plugins_kernels():
    yield Kernel("maxsim", "{name}", "{name}:KERNEL", ("cpu",), ("float32",))
    {more}
"""


def test_kernels_reach_the_operations_and_are_withdrawn(site):
    site.plugin("fast", KERNELS.format(name="fast", more=""))
    site.plugin("half", KERNELS.format(name="half", more="raise OSError('no driver')"))
    before = list(api.kernel_providers), list(api.kernel_rankers)
    discovery = discover()
    withdraw = discovery.publish()
    names = [kernel.name for provider in api.kernel_providers for kernel in provider()]
    assert "fast" in names
    assert reasons(discovery)["half"] == "OSError: no driver"
    withdraw()
    assert (list(api.kernel_providers), list(api.kernel_rankers)) == before


def test_something_that_is_no_kernel_is_named(site):
    site.plugin("odd", "@hookimpl\ndef li_plugins_kernels(): return ['fast']")
    discovery = discover()
    assert discovery.kernels() == []
    assert "must return Kernel objects; found 'fast'" in reasons(discovery)["odd"]


def test_the_first_ranking_wins_and_a_failing_one_is_passed_over(site):
    hook = "@hookimpl({mark})\ndef li_plugins_rank_kernels(op, kernels): {body}"
    site.plugin("a_fails", hook.format(mark="tryfirst=True", body="1 / 0"))
    site.plugin("b_silent", hook.format(mark="tryfirst=True", body="return None"))
    site.plugin("c_ranks", hook.format(mark="", body="return kernels[::-1]"))
    site.plugin("d_late", hook.format(mark="trylast=True", body="return []"))
    discovery = discover()
    assert discovery.rank("maxsim", object(), ["x", "y"]) == ["y", "x"]
    assert "a_fails" in reasons(discovery)


def test_without_an_opinion_there_is_no_ranking(site):
    assert discover().rank("maxsim", object(), ["x"]) is None
