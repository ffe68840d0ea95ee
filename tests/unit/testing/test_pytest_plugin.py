"""The plugin, as a project sees it that runs pytest beside li-plugins."""

from textwrap import dedent

import pytest

HEADER = """
    import li_plugins, pytest
    from fakelib.scores import score

    @pytest.fixture(autouse=True)
    def enabled():
        li_plugins.enable("fake")
        yield
        li_plugins.disable_all()
    """


@pytest.fixture
def run(site, pytester, monkeypatch):
    """Write a test module beside the fake library and run it in a process of its own."""
    site.adapter()
    monkeypatch.setenv("PYTHONPATH", str(site.path))

    def run(tests, header=HEADER):
        pytester.makepyfile(test_it=dedent(header) + dedent(tests))
        return pytester.runpytest_subprocess("--strict-markers", "-rA")

    return run


def test_a_silent_fallback_is_red_and_names_target_and_reason(run):
    result = run(
        """
        def test_it():
            assert score("decline") == score("decline") == ("library", "decline", 1)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*a patched function ran the original:", "*fakelib.scores:score declined 2x: x is 'decline'"]
    )


def test_a_call_that_did_not_fall_back_is_green(run):
    run(
        """
        def test_it():
            assert score(2) == ("ours", 2, 1)
        """
    ).assert_outcomes(passed=1)


def test_the_marker_allows_a_fallback_and_asks_for_its_reason(run):
    result = run(
        """
        @pytest.mark.allow_fallback(reason="about declines")
        def test_named():
            assert score("decline") == ("library", "decline", 1)

        @pytest.mark.allow_fallback
        def test_unnamed():
            assert score("decline") == ("library", "decline", 1)
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.allow_fallback needs a reason*"])


def test_a_fallback_in_a_fixture_is_red(run):
    run(
        """
        @pytest.fixture
        def scored(enabled):
            return score("decline")

        def test_it(scored):
            assert scored == ("library", "decline", 1)
        """
    ).assert_outcomes(failed=1)


def test_a_fallback_is_red_though_the_test_disabled_the_adapter(run):
    run(
        """
        def test_it():
            assert score("decline") == ("library", "decline", 1)
            li_plugins.disable_all()
        """
    ).assert_outcomes(failed=1)


def test_a_fallback_taints_no_other_test(run):
    run(
        """
        def test_first():
            assert score("decline") == ("library", "decline", 1)

        def test_second():
            assert score(2) == ("ours", 2, 1)
        """
    ).assert_outcomes(failed=1, passed=1)


def test_an_error_of_the_test_itself_is_what_is_shown(run):
    result = run(
        """
        def test_it():
            assert score("decline") == 5
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert ('library', 'decline', 1) == 5*"])
    result.stdout.no_fnmatch_line("*ran the original*")


def test_the_fixture_counts_this_test_only(run):
    run(
        """
        def test_first():
            assert score(2) == ("ours", 2, 1)

        @pytest.mark.allow_fallback(reason="about declines")
        def test_second(li_plugins_counts):
            assert (li_plugins_counts.calls, li_plugins_counts.declines) == ({}, {})
            score(2), score("decline")
            assert li_plugins_counts.calls == {"fakelib.scores:score": 2}
            assert li_plugins_counts.declines == {"fakelib.scores:score": {"x is 'decline'": 1}}
        """
    ).assert_outcomes(passed=2)


def test_a_project_may_allow_every_fallback(run, pytester):
    pytester.makeini("[pytest]\nli_plugins_fallback = allow")
    run(
        """
        def test_it():
            assert score("decline") == ("library", "decline", 1)
        """
    ).assert_outcomes(passed=1)


def test_a_setting_without_meaning_is_a_usage_error(run, pytester):
    pytester.makeini("[pytest]\nli_plugins_fallback = perhaps")
    result = run("def test_it(): pass", header="")
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
        """,
        header="",
    ).assert_outcomes(passed=1)
