"""The version gate: installed metadata against a requirement."""

from __future__ import annotations

import pytest

from li_plugins.host.requirement import installed_release


@pytest.mark.parametrize(
    ("version", "requires", "state"),
    [
        ("1.5", "lib>=1,<2", "tested"),
        ("2.0", "lib>=1,<2", "untested"),
        ("1.6rc1", "lib>=1,<2", "tested"),
        ("2.0rc1", "lib>=1,<2", "untested"),
        ("2.0.dev3", "lib>=1,<2", "untested"),
        ("1.5.post1+cpu", "lib>=1,<2", "tested"),
        ("1.5", "lib[extra]>=1,<2", "tested"),
        ("1.5", "lib", "tested"),
        ("1.5", "LIB>=1", "tested"),
        ("1.5", "lib>=1; python_version<'3'", "untested"),
        ("1.5", "lib>=1; python_version>'3'", "tested"),
        ("of yesterday", "lib>=1", "untested"),
        ("of yesterday", "lib", "tested"),
        ("1.5", "other>=1", "absent"),
    ],
)
def test_states(site, version, requires, state):
    site.distribution("lib", version)
    release = installed_release(requires)
    assert release.state == state
    assert bool(release.reason) == (state != "tested")


def test_a_refusal_says_what_was_found_what_is_tested_and_what_to_do(site):
    site.distribution("lib", "2.0")
    reason = installed_release("lib>=1,<2").reason
    assert reason.startswith("lib 2.0 is installed; install a tested release (<2,>=1)")
    assert "LI_PLUGINS_UNTESTED=1" in reason


def test_a_target_exists_in_some_releases(site):
    site.distribution("lib", "1.6rc1")
    release = installed_release("lib>=1,<2")
    assert release.has("")
    assert release.has(">=1.5")
    assert not release.has(">=1.6")


@pytest.mark.parametrize(
    ("version", "state"), [("5.9", "absent"), ("6.0rc1", "tested"), ("6.0", "tested"), ("6.3", "untested")]
)
def test_a_release_older_than_what_is_patched_is_as_good_as_absent(site, version, state):
    site.distribution("lib", version)
    release = installed_release("lib>=6.0rc1,<6.3", since="6.0")
    assert release.state == state
    assert ("older than 6.0" in release.reason) == (state == "absent")


def test_damaged_metadata_is_untested_not_an_error(site):
    folder = site.path / "lib-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lib\n")
    release = installed_release("lib>=1")
    assert release.state == "untested"
    assert "no version" in release.reason
