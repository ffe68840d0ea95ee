"""The plugin, as a project sees it that runs pytest beside li-plugins."""

import re
from textwrap import dedent

import pytest

FALLBACKS = """
    import li_plugins, pytest
    from fakelib.scores import score

    ORIGINAL = ("library", "decline", 1)

    @pytest.fixture(autouse=True)
    def enabled():
        li_plugins.enable("fake")
        yield
        li_plugins.disable_all()

    def test_without_a_fallback():
        assert score(2) == ("ours", 2, 1)

    def test_with_a_fallback():
        assert score("decline") == score("decline") == ORIGINAL

    def test_after_another_test_fell_back():
        assert score(2) == ("ours", 2, 1)

    @pytest.fixture
    def scored(enabled):
        return score("decline")

    def test_with_a_fallback_in_a_fixture(scored):
        assert scored == ORIGINAL

    def test_with_a_fallback_before_disabling():
        assert score("decline") == ORIGINAL
        li_plugins.disable_all()

    @pytest.mark.allow_fallback(reason="about declines")
    def test_allowed_with_a_reason():
        assert score("decline") == ORIGINAL

    @pytest.mark.allow_fallback
    def test_allowed_without_a_reason():
        assert score("decline") == ORIGINAL

    def test_with_an_error_of_its_own():
        assert score("decline") == "its own error"

    @pytest.mark.allow_fallback(reason="about declines")
    def test_counts(li_plugins_counts):
        assert (li_plugins_counts.calls, li_plugins_counts.declines) == ({}, {})
        score(2), score("decline")
        assert li_plugins_counts.calls == {"fakelib.scores:score": 2}
        assert li_plugins_counts.declines == {"fakelib.scores:score": {"x is 'decline'": 1}}
    """


@pytest.fixture
def run(site, pytester, monkeypatch):
    """Write a test module beside the fake library and run it in a process of its own."""
    site.adapter()
    monkeypatch.setenv("PYTHONPATH", str(site.path))

    def run(tests):
        pytester.makepyfile(test_it=dedent(tests))
        return pytester.runpytest_subprocess("--strict-markers", "-rA")

    return run


def test_a_silent_fallback_is_red(run):
    result = run(FALLBACKS)
    outcomes = {name: outcome for outcome, name in re.findall(r"^([A-Z]+) .*::(\w+)", str(result.stdout), re.MULTILINE)}
    assert outcomes == {
        "test_without_a_fallback": "PASSED",
        "test_with_a_fallback": "FAILED",
        "test_after_another_test_fell_back": "PASSED",
        "test_with_a_fallback_in_a_fixture": "FAILED",
        "test_with_a_fallback_before_disabling": "FAILED",
        "test_allowed_with_a_reason": "PASSED",
        "test_allowed_without_a_reason": "FAILED",
        "test_with_an_error_of_its_own": "FAILED",
        "test_counts": "PASSED",
    }
    result.stdout.fnmatch_lines_random(
        [
            "a patched function ran the original:",
            "  fakelib.scores:score declined 2x: x is 'decline'",
            "@pytest.mark.allow_fallback needs a reason; *",
            "E * assert ('library', 'decline', 1) == 'its own error'",
        ]
    )


def test_a_project_may_allow_every_fallback(run, pytester):
    pytester.makeini("[pytest]\nli_plugins_fallback = allow")
    run(FALLBACKS).assert_outcomes(passed=8, failed=1)


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
