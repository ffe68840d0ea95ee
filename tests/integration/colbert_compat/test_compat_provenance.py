"""The library on a machine without git, and what it notes of a repository that GitPython cannot read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Unmended

SAVE = "import colbert.infra as i; i.ColBERTConfig(dim=7).save('saved.json'); print('saved')"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="the test makes a repository with git")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=trunk"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init")
    git(folder, "commit", "--allow-empty", "-m", "First")
    return folder


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code where no git can be found."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LI_PLUGINS", "GIT_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PATH": "/nonexistent", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_by_itself_the_library_cannot_be_imported(tmp_path: Path) -> None:
    done = run("import colbert", tmp_path)
    assert done.returncode == 1
    assert "Bad git executable" in done.stderr


@needs_git
def test_it_is_imported_and_saves_without_git(repository: Path) -> None:
    done = run(SAVE, repository, LI_PLUGINS="colbert-compat", LI_PLUGINS_STRICT="1")
    assert done.returncode == 0, done.stderr
    saved = json.loads((repository / "saved.json").read_text())
    assert saved["dim"] == 7
    assert saved["meta"]["hostname"]
    assert saved["meta"]["current_datetime"]
    assert "git_hash" not in saved["meta"]


def test_in_code_after_an_import_that_failed_too(tmp_path: Path) -> None:
    code = (
        "import os\ntry:\n    import colbert\nexcept ImportError: print('failed')\n"
        "import li_plugins; li_plugins.enable('colbert-compat', strict=True)\n"
        "import colbert; print('imported', 'GIT_PYTHON_REFRESH' in os.environ)"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["failed", "imported", "False"]


def test_who_asks_gitpython_to_raise_gets_the_error(tmp_path: Path) -> None:
    done = run("import colbert", tmp_path, LI_PLUGINS="colbert-compat", GIT_PYTHON_REFRESH="raise")
    assert done.returncode == 1
    assert "Bad git executable" in done.stderr


@needs_git
def test_what_git_tells_is_noted_as_ever(repository: Path, unmended: Unmended, monkeypatch: pytest.MonkeyPatch) -> None:
    from utility.utils.save_metadata import get_metadata_only

    monkeypatch.chdir(repository)
    found = get_metadata_only()
    with unmended():
        expected = get_metadata_only()
    assert found.pop("current_datetime")
    assert expected.pop("current_datetime")
    assert found == expected
    assert (found.git_branch, found.git_hash) == ("trunk", git(repository, "rev-parse", "HEAD"))


@needs_git
@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["checkout", "--detach"], TypeError), (["checkout", "--orphan", "other"], ValueError)],
    ids=["detached head", "no commit yet"],
)
def test_where_git_tells_no_branch_or_commit_the_rest_is_noted(
    repository: Path,
    unmended: Unmended,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type[Exception],
) -> None:
    from utility.utils.save_metadata import get_metadata_only

    git(repository, *arguments)
    monkeypatch.chdir(repository)
    with unmended(), pytest.raises(error):
        get_metadata_only()
    found = get_metadata_only()
    assert set(found) == {"hostname", "current_datetime", "cmd"}
    assert type(found).__name__ == "dotdict"
