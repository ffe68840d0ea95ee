"""The conformance suite passes for a sound adapter, and finds what is wrong with each of the others."""

import re
from textwrap import dedent

import pytest


def replaced(module, old, new):
    """Return an edit of a module."""

    def edit(site):
        file = site.path / module
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


def added(hook):
    """Return an edit that gives the adapter's plugin another hook."""

    def edit(site):
        with (site.path / "fake_plugin.py").open("a") as file:
            file.write(dedent(hook))

    return edit


DEFECTS = {
    "test_the_installed_release_is_a_tested_one": replaced("fakelib-1.5.dist-info/METADATA", "1.5", "2.0"),
    "test_the_manifest_names_each_target_once_with_readable_bodies": replaced("fake_plugin.py", "7ba63937", "1.5"),
    "test_the_manifest_imports_nothing_heavy": replaced("fake_plugin.py", "@hookimpl", "import fakelib\n@hookimpl"),
    "test_every_name_of_the_manifest_exists": replaced("fake_replacements.py", "def explain_", "def describe_"),
    "test_every_target_is_patched": replaced("fake_plugin.py", "7ba63937", "00000000"),
    "test_the_signature_and_the_docstring_stay": replaced("fake_replacements.py", "def score(x,", "def score(a, x=0,"),
    # a plugin that patches on its own when it hears that its target was given back
    "test_disabling_gives_back_identical_functions": added(
        """
        @hookimpl
        def li_plugins_restored(record):
            record.function.__code__ = record.function.__code__.replace(co_name="mine")
        """
    ),
    # one that offers nothing any more once its library is imported
    "test_the_order_of_import_enable_and_disable_does_not_matter": replaced(
        "fake_plugin.py", "return [", "import sys; return [] if 'fakelib.scores' in sys.modules else ["
    ),
}


@pytest.fixture
def run(site, pytester, monkeypatch):
    """Write the library and the adapter, with a defect, and run the suite in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(site.path))

    def run(*arguments, defect=None):
        site.adapter()
        if defect is not None:
            defect(site)
        pytester.makepyfile(
            """
            from li_plugins.testing.conformance import Conformance

            class TestFake(Conformance):
                adapter = "fake"
            """
        )
        return pytester.runpytest_subprocess("--strict-markers", "-rA", *arguments)

    return run


def test_a_sound_adapter_passes(run):
    assert run().parseoutcomes() == {"passed": 12}


@pytest.mark.parametrize("check", DEFECTS)
def test_a_defect_fails_its_check(run, check):
    assert re.search(rf"^FAILED .*::{check}\b", str(run("-k", check, defect=DEFECTS[check]).stdout), re.MULTILINE)
