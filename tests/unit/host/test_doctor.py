"""What the doctor finds and advises; torch is asked by the command line's own test."""

from __future__ import annotations

import json
import sys

import pytest

from li_plugins.host import doctor
from li_plugins.host.doctor import examine
from li_plugins.host.session import Session

GPU = {"torch": "2.13.0", "cuda": "12.8", "gpus": [{"name": "NVIDIA H200", "arch": "sm_90"}]}


@pytest.fixture
def session(site, monkeypatch):
    """Return a session that sees the fake distributions only, on a machine with one GPU."""
    site.distribution("li-plugins", "0.0")  # stands before the real one, and offers no adapter
    monkeypatch.setattr(doctor, "_probe_torch", lambda: GPU)
    found = Session()
    yield found
    found.close()


def states(found) -> dict[str, str]:
    return {row.target.rpartition(":")[2] or row.adapter: row.state for row in found.status.rows}


def change(site) -> None:
    file = site.path / "fakelib" / "scores.py"
    file.write_text(file.read_text().replace('("library", x, y)', '("changed", x, y)'))


def test_a_healthy_machine(site, session):
    site.adapter()
    found = examine(session)
    assert found.healthy
    assert found.advice == ()
    assert found.gpus == ("NVIDIA H200 (sm_90)",)
    assert found.versions["CUDA"] == "12.8"
    text = str(found)
    for says in ("NVIDIA H200 (sm_90)", "fakelib>=1,<2", "LI_PLUGINS_UNTESTED", doctor.GATE_SWITCH, "nothing: all is"):
        assert says in text
    assert json.loads(json.dumps(found.to_dict()))["healthy"] is True
    assert "fakelib" not in sys.modules


def test_a_changed_body_is_found_in_the_files(site, session, monkeypatch):
    site.adapter()
    change(site)
    found = examine(session)
    assert not found.healthy
    assert states(found) == {"score": "refused", "Scorer.__call__": "off"}
    assert "fakelib" not in sys.modules
    assert "known: 7ba63937 (1.5)" in found.advice[0]
    assert "LI_PLUGINS_UNTESTED=1" in found.advice[0]
    monkeypatch.setenv("LI_PLUGINS_UNTESTED", "1")
    assert examine(session).healthy


def test_a_changed_helper_counts(site, session):
    target = 'Target("fakelib.scores:score", "fake_replacements:score", also={"fakelib.scores:other": ["00000000"]})'
    site.adapter(targets=target)
    found = examine(session)
    assert not found.healthy
    assert "the body of fakelib.scores:other is 3f13a0c1; known: 00000000" in found.advice[0]


def test_what_only_an_import_can_tell_is_said(site, session):
    site.adapter(library="import functools\nscore = functools.partial(print)\nclass Scorer: ...")
    reason = examine(session).status.rows[0].reason
    assert "only an import can tell" in reason
    assert "--import" in reason


def test_import_lets_the_gates_decide(site, session):
    site.adapter()
    change(site)
    found = examine(session, imports=True)
    assert states(found) == {"score": "refused", "Scorer.__call__": "patched"}
    assert not found.healthy


def test_a_library_that_cannot_be_imported_is_a_finding(site, session):
    site.adapter(library="import nothing_of_that_name")
    found = examine(session, imports=True)
    assert states(found) == {"score": "armed", "Scorer.__call__": "armed"}
    assert "nothing_of_that_name" in found.advice[0]


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"LI_PLUGINS": "1", doctor.GATE_SWITCH: "0"}, "LI_PLUGINS has no effect with TORCH_DEVICE_BACKEND_AUTOLOAD=0"),
        ({"LI_PLUGINS": "0"}, "keeps every adapter off"),
        ({"LI_PLUGINS_STRICT": "si"}, "LI_PLUGINS_STRICT takes 1 or 0"),
    ],
)
def test_advice_on_variables(site, session, monkeypatch, environment, says):
    site.adapter()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = examine(session)
    assert any(says in line for line in found.advice)
    assert found.variables.items() >= environment.items()


def test_no_supported_library(site, session):
    assert any("no supported library is installed" in line for line in examine(session).advice)


def test_a_torch_that_cannot_be_imported(site, session, monkeypatch):
    monkeypatch.setattr(doctor, "_probe_torch", lambda: {"error": "cannot be imported: OSError: libcudart"})
    found = examine(session)
    assert "libcudart" in found.versions["torch"]
    assert any("torch cannot be imported" in line for line in found.advice)


def test_the_probe_reports_a_broken_torch(site, monkeypatch):
    site.module("torch", "raise OSError('libcudart')")
    monkeypatch.setenv("PYTHONPATH", str(site.path))
    assert doctor._probe_torch()["error"] == "cannot be imported: OSError: libcudart"


def test_the_driver_is_asked_for_and_may_be_missing(site, monkeypatch):
    monkeypatch.setenv("PATH", str(site.path))
    assert doctor._driver() == "none found (no nvidia-smi)"
    tool = site.path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 570.86.15\n")
    tool.chmod(0o755)
    assert doctor._driver() == "570.86.15"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._driver() == "nvidia-smi finds none"
