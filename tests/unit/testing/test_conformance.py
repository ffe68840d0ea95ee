"""The conformance suite passes for a sound adapter, and finds what is wrong with each of the others."""

import textwrap

import pytest


def replaced(old, new):
    """Return an edit of every module that has ``old``."""
    return lambda path, text: text.replace(old, new)


def added(hook):
    """Return an edit that gives the adapter's plugin another hook."""
    return lambda path, text: text + textwrap.dedent(hook) if path == "toyadapter/__init__.py" else text


DEFECTS = {
    "test_the_manifest_names_each_target_once_with_readable_bodies": replaced(
        '"toyadapter.scores:score"', '"toyadapter.scores:score", {"1": "?"}'
    ),
    "test_the_manifest_imports_nothing_heavy": replaced(
        "import Adapter,", "import Adapter; import toylib\nfrom li_plugins.api import"
    ),
    "test_every_name_of_the_manifest_exists": replaced("toyadapter.scores:score", "toyadapter.scores:scored"),
    "test_every_target_is_patched": replaced(
        '"toyadapter.scores:score"', '"toyadapter.scores:score", {"1": "00000000"}'
    ),
    "test_the_signature_and_the_docstring_stay": replaced(
        "def score(a, b=1):\n    return Decline", "def score(x, b=1):\n    return Decline"
    ),
    "test_disabling_gives_back_identical_functions": added(
        """
        @hookimpl
        def li_plugins_restored(record):  # patches on its own when it hears that its target was given back
            record.function.__code__ = record.function.__code__.replace(co_name="mine")
        """
    ),
    "test_the_order_of_import_enable_and_disable_does_not_matter": added(
        """
        @hookimpl
        def li_plugins_patched(record):  # undoes the patch behind the host's back
            record.function.__code__ = record.original.__code__
        """
    ),
}


@pytest.fixture
def run(toy, pytester):
    """Write the library and the adapter and run the suite in a process of its own."""

    def run(*arguments):
        toy(*arguments)
        pytester.makepyfile(
            """
            from li_plugins.testing.conformance import Conformance

            class TestToy(Conformance):
                adapter = "toy"
            """
        )
        return pytester.runpytest_subprocess("--strict-markers", "-rA")

    return run


def test_a_sound_adapter_passes(run):
    outcomes = run().parseoutcomes()
    assert outcomes.pop("passed") >= 12
    assert outcomes == {"skipped": 1}


@pytest.mark.parametrize("check", DEFECTS)
def test_a_defect_fails_its_check(run, check):
    run("1.5", DEFECTS[check]).stdout.fnmatch_lines([f"FAILED *::{check}*"])


def test_an_untested_release_fails_its_check(run):
    run("2.0").stdout.fnmatch_lines(["FAILED *::test_the_installed_release_is_a_tested_one*"])
