"""The plugin, as a project sees it that runs pytest beside li-plugins."""

import textwrap

import pytest

CALLS = """
    import li_plugins, pytest
    from toylib.scores import score

    @pytest.fixture(autouse=True)
    def enabled():
        li_plugins.enable("toy")
        yield
        li_plugins.disable_all()
    """


@pytest.fixture
def run(toy, pytester):
    """Write a test module and run it in a process of its own."""
    toy()

    def run(module, *arguments):
        pytester.makepyfile(test_it=textwrap.dedent(module))
        return pytester.runpytest_subprocess("--strict-markers", "-rA", *arguments)

    return run


def test_a_silent_fallback_is_red_and_names_target_and_reason(run):
    result = run(
        CALLS
        + """
    def test_it():
        assert score(1) == 2 and score(3) == 4
    """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a patched function ran the original:", "*toylib.scores:score declined 2x: a is odd"])


def test_a_call_that_did_not_fall_back_is_green(run):
    run(
        CALLS
        + """
    def test_it():
        assert score(2) == 1003
    """
    ).assert_outcomes(passed=1)


def test_the_marker_allows_a_fallback_and_asks_for_its_reason(run):
    result = run(
        CALLS
        + """
    @pytest.mark.allow_fallback(reason="odd numbers")
    def test_named():
        assert score(1) == 2

    @pytest.mark.allow_fallback
    def test_unnamed():
        assert score(1) == 2
    """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.allow_fallback needs a reason*"])


def test_a_fallback_in_a_fixture_is_red(run):
    run(
        CALLS
        + """
    @pytest.fixture
    def scored(enabled):
        return score(1)

    def test_it(scored):
        assert scored == 2
    """
    ).assert_outcomes(failed=1)


def test_a_fallback_is_red_though_the_test_disabled_the_adapter(run):
    run(
        CALLS
        + """
    def test_it():
        assert score(1) == 2
        li_plugins.disable_all()
    """
    ).assert_outcomes(failed=1)


def test_a_fallback_taints_no_other_test(run):
    run(
        CALLS
        + """
    def test_first():
        assert score(1) == 2

    def test_second():
        assert score(2) == 1003
    """
    ).assert_outcomes(failed=1, passed=1)


def test_an_error_of_the_test_itself_is_what_is_shown(run):
    result = run(
        CALLS
        + """
    def test_it():
        assert score(1) == 5
    """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 2 == 5*"])
    result.stdout.no_fnmatch_line("*ran the original*")


def test_the_fixture_counts_this_test_only(run):
    run(
        CALLS
        + """
    def test_first():
        assert score(2) == 1003

    @pytest.mark.allow_fallback(reason="odd numbers")
    def test_second(li_plugins_counts):
        assert (li_plugins_counts.calls, li_plugins_counts.declines) == ({}, {})
        score(2), score(1)
        assert li_plugins_counts.calls == {"toylib.scores:score": 2}
        assert li_plugins_counts.declines == {"toylib.scores:score": {"a is odd": 1}}
    """
    ).assert_outcomes(passed=2)


def test_a_project_may_allow_every_fallback(run, pytester):
    pytester.makeini("[pytest]\nli_plugins_fallback = allow")
    run(
        CALLS
        + """
    def test_it():
        assert score(1) == 2
    """
    ).assert_outcomes(passed=1)


def test_a_setting_without_meaning_is_a_usage_error(run, pytester):
    pytester.makeini("[pytest]\nli_plugins_fallback = perhaps")
    result = run("def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*li_plugins_fallback takes fail or allow; found 'perhaps'*"])


def test_the_plugin_by_itself_imports_neither_torch_nor_the_host(run):
    run(
        """
    import sys

    def test_it(li_plugins_counts):
        assert (li_plugins_counts.calls, li_plugins_counts.declines) == ({}, {})
        loaded = [name for name in sys.modules if name == "torch" or name.startswith("li_plugins")]
        assert loaded == ["li_plugins", "li_plugins.testing", "li_plugins.testing.pytest_plugin"]
    """
    ).assert_outcomes(passed=1)
