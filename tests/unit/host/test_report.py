"""The status table and the explanation, as people and programs read them."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from li_plugins.api import Decline
from li_plugins.host.report import Explanation, Row, Status

ROWS = (
    Row("fake", "fakelib.scores:score", "patched", 3, 2, "declined 2x: x is [odd] & <small>"),
    Row("fake", "fakelib.scores:other", "refused", 0, 0, "its body is abc; known: def; set LI_PLUGINS_UNTESTED=1"),
    Row("gone", "", "absent", 0, 0, "gonelib is not installed"),
)


@pytest.fixture
def status() -> Status:
    return Status(ROWS, ("LI_PLUGINS=0 in the environment [wins]",), {"fakelib.scores:score": {"x is odd": 2}})


def test_prints_every_row_and_note_without_colour(status):
    text = str(status)
    lines = text.splitlines()
    assert lines[0].split() == ["adapter", "target", "state", "calls", "declines", "reason"]
    assert "\x1b" not in text
    assert lines[1].split()[:5] == ["fake", "fakelib.scores:score", "patched", "3", "2"]
    assert "x is [odd] & <small>" in text
    assert "LI_PLUGINS=0 in the environment [wins]" in text
    assert all(row.reason[:20] in text for row in ROWS)


def test_an_adapter_without_targets_has_no_counts(status):
    line = next(line for line in str(status).splitlines() if line.startswith("gone"))
    assert "0" not in line


def test_the_last_line_of_a_cell_shows_the_table(status):
    assert repr(status) == str(status)
    html = status._repr_html_()
    assert html.count("<tr>") == 1 + len(ROWS)
    assert "x is [odd] &amp; &lt;small&gt;" in html
    assert "<small>" not in html


def test_a_terminal_gets_colour(status):
    console = Console(file=StringIO(), force_terminal=True, color_system="standard", width=120, no_color=False)
    console.print(status)
    assert "\x1b[32mpatched" in console.file.getvalue()


def test_narrow_terminals_keep_the_words(status, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert "fakelib.scores:score" in str(status)


def test_plain_data(status):
    data = json.loads(json.dumps(status.to_dict()))
    assert data["rows"][0] == {
        "adapter": "fake",
        "target": "fakelib.scores:score",
        "state": "patched",
        "calls": 3,
        "declines": 2,
        "reason": ROWS[0].reason,
        "declines_by_reason": {"x is odd": 2},
    }
    assert data["notes"] == ["LI_PLUGINS=0 in the environment [wins]"]


def test_failures_are_what_somebody_must_look_at(status):
    assert [row.state for row in status.failures] == ["refused"]


@pytest.mark.parametrize(
    ("answer", "accelerated", "says"),
    [
        (None, True, "fake_replacements.score runs"),
        ("kernel fast\nrejected slow: slow", True, "rejected slow: slow"),
        (Decline("int8"), False, "fake_replacements.score declines, the original runs: int8"),
    ],
)
def test_an_explanation_of_a_patched_function(answer, accelerated, says):
    found = Explanation("fakelib.scores.score", "patched", "", "fake", "fake_replacements.score", answer)
    assert found.accelerated is accelerated
    assert says in str(found)
    assert repr(found) == str(found)
    assert json.loads(json.dumps(found.to_dict()))["accelerated"] is accelerated


def test_an_explanation_of_another_function():
    found = Explanation("math.sqrt", reason="no adapter names this function")
    assert not found.accelerated
    assert str(found).splitlines() == [
        "math.sqrt: not a target",
        "  the original runs: no adapter names this function",
    ]


def test_a_narrow_terminal_breaks_no_name(capsys):
    from rich.console import Console

    names = ["pylate.scores.colbert:colbert_scores_pairwise", "pylate.scores.colbert:ColBERTScores.__call__"]
    rows = tuple(
        Row("sentence-transformers", name, "patched", 12, 3, "a reason [of] some length" * 4) for name in names
    )
    Console(width=80).print(Status(rows, ("a note",)))
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    long = "transformers.models.colmodernvbert.processing_colmodernvbert:ColModernVBertProcessor.score_retrieval"
    Console(width=80).print(Status((Row("transformers", long, "armed", 0, 0, ""),)))
    module, name = long.split(":")
    assert capsys.readouterr().out.split()[-2:] == [f"{module}:", name]
    assert "sentence-transformers  patched  12 calls, 3 declines" in shown
    assert "a note" in shown
    Console(width=160).print(Status(rows))
    assert capsys.readouterr().out.startswith("adapter ")
