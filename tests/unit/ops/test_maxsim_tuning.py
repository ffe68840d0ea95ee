"""Rows of blocks that were measured: their file, their keys, the search for them, and who uses them."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from li_plugins.errors import BadInput
from li_plugins.ops.maxsim import tuning, tuning_file, tuning_rows, tuning_run, tuning_search, tuning_text
from li_plugins.ops.maxsim.reference import KERNEL as REFERENCE
from li_plugins.ops.maxsim.tuning_search import Outcome, Trial
from li_plugins.ops.maxsim.tuning_sizes import Card, Sizes

CARD = Card(90, 132, 232_448)
SIZES = Sizes("CROSS", False, 2, 128, 256, 32, 512, 180)
FORWARD = {"ROWS": 64, "BLOCK_N": 128, "documents": 5, "num_warps": 4, "num_stages": 2, "maxnreg": None}
QUERIES = {"ROWS": 4, "VISITS": 16, "BLOCK_D": 64, "num_warps": 2, "num_stages": 1, "maxnreg": None}
SORTED = {"ENTRIES": 32, "BLOCK_D": 64, "num_warps": 1, "num_stages": 2, "maxnreg": 96}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rows of this test, and of no other."""
    path = tmp_path / "cache" / "rows.json"
    monkeypatch.setenv("LI_PLUGINS_TUNING", str(path))
    tuning_rows.forget()
    yield path
    tuning_rows.forget()


def put(**rows: object) -> None:
    keys = {phase: tuning_rows.key(phase, SIZES, CARD) for phase in rows}
    tuning_file.store({keys[phase]: row and {"blocks": row, "measured": {}} for phase, row in rows.items()})
    tuning_rows.forget()


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# The file.


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LI_PLUGINS_TUNING", "~/rows.json")
    assert tuning_file.location() == str(tmp_path / "rows.json")
    monkeypatch.setenv("LI_PLUGINS_TUNING", "0")
    assert tuning_file.location() is None
    monkeypatch.delenv("LI_PLUGINS_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert tuning_file.location() == str(tmp_path / "x" / "li_plugins" / "tuning.json")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert tuning_file.location() == str(tmp_path / ".cache" / "li_plugins" / "tuning.json")


def test_rows_are_merged_replaced_and_dropped(file: Path) -> None:
    tuning_file.store({"a": {"blocks": {"x": 1}, "measured": {"gpu": "Card"}}, "b": {"blocks": {"x": 2}}})
    assert tuning_file.rows() == {"a": {"x": 1}, "b": {"x": 2}}
    tuning_file.store({"b": {"blocks": {"x": 3}}, "c": {"blocks": {"x": None}}})
    assert tuning_file.rows() == {"a": {"x": 1}, "b": {"x": 3}, "c": {"x": None}}
    tuning_file.store({"a": None})
    assert list(tuning_file.rows()) == ["b", "c"]
    assert os.listdir(file.parent) == [file.name]


def test_rows_of_other_versions_are_kept_and_not_used(file: Path) -> None:
    file.parent.mkdir()
    later = {"version": 99, "key": "a", "blocks": {"x": "words"}}
    file.write_text(json.dumps({"what": "li-plugins tuning", "rows": [later]}))
    assert tuning_file.rows() == {}
    tuning_file.store({"a": {"blocks": {"x": 1}}})
    assert tuning_file.rows() == {"a": {"x": 1}}
    assert json.loads(file.read_text())["rows"][0] == later


def test_a_file_is_written_whole_or_not_at_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning_file.store({"a": {"blocks": {"x": 1}}})
    before = file.read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        tuning_file.store({"b": {"blocks": {"x": 2}}})
    assert file.read_text() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    file.parent.mkdir()
    file.symlink_to(tmp_path / "elsewhere.json")
    tuning_file.store({"a": {"blocks": {"x": 1}}})
    assert file.is_symlink()
    assert (tmp_path / "elsewhere.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\xff",
        '{"rows": []}',
        '{"what": "li-plugins tuning", "rows": [{"version": 1, "key": "a"}]}',
        '{"what": "li-plugins tuning", "rows": [{"version": 1, "key": "a", "blocks": {"ROWS": "64"}}]}',
    ],
)
def test_a_file_that_makes_no_sense_is_named_once_and_left_alone(
    file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir()
    file.write_text(content, encoding="latin-1")
    builtin = tuning.forward(SIZES, False, CARD)
    tuning.forward(SIZES, True, CARD)
    (warning,) = warned(caplog)
    assert str(file) in warning
    assert "move the file away" in warning
    with tuning_rows.trial({}):
        assert tuning.forward(SIZES, False, CARD) == builtin
    with pytest.raises(BadInput, match="move the file away"):
        tuning_file.store({"a": {"blocks": {"x": 1}}})
    assert file.read_text(encoding="latin-1") == content


def test_where_nothing_can_be_stored(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInput, match="where nothing can be written; name another file"):
        tuning_file.check()
    monkeypatch.setenv("LI_PLUGINS_TUNING", "0")
    with pytest.raises(BadInput, match="LI_PLUGINS_TUNING=0; unset it"):
        tuning_file.check()


# Keys, and who uses a row.


def test_a_key_is_shared_within_powers_of_two() -> None:
    key = tuning_rows.key("scores", SIZES, CARD)
    alike = SIZES._replace(queries=200, documents=257, document_length=129)
    assert tuning_rows.key("scores", alike, CARD) == key
    assert tuning_rows.key("scores", SIZES._replace(queries=300, query_length=20), CARD) == key
    others = [
        tuning_rows.key("winners", SIZES, CARD),
        tuning_rows.key("scores", SIZES, CARD._replace(capability=80)),
        tuning_rows.key("scores", SIZES, CARD._replace(processors=114)),
        *(
            tuning_rows.key("scores", SIZES._replace(**change), CARD)
            for change in (
                {"layout": "CANDIDATES"}, {"is_packed": True}, {"element_size": 4}, {"width": 96}, {"queries": 257},
                {"query_length": 33, "queries": 240}, {"documents": 513}, {"document_length": 257},
            )
        ),
    ]  # fmt: skip
    assert len({key, *others}) == 1 + len(others)


def test_stored_rows_are_used() -> None:
    with_winners = tuning.forward(SIZES, True, CARD)
    put(scores=FORWARD, queries=QUERIES, documents=SORTED)
    alike = SIZES._replace(queries=200, documents=3 + 256)
    for sizes in (SIZES, alike):
        chosen = tuning.forward(sizes, False, CARD)
        assert (chosen.blocks.ROWS, chosen.blocks.BLOCK_N, chosen.documents) == (64, 128, 5)
        assert chosen.options == (4, 2, None)
    assert tuning.query_gradient(SIZES, CARD) == (4, 16, 64, (2, 1, None))
    assert tuning.sorted_gradient(SIZES, CARD) == (32, 64, (1, 2, 96))
    assert tuning.forward(SIZES, True, CARD) == with_winners
    lines = "\n".join(line for phase in ("scores", "backward") for line in tuning_text.described(SIZES, CARD, phase))
    assert lines.count("(stored by li-plugins tune)") == 3


def test_rows_are_ignored_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    builtin = tuning.forward(SIZES, False, CARD)
    put(scores=FORWARD)
    assert tuning.forward(SIZES, False, CARD) != builtin
    monkeypatch.setenv("LI_PLUGINS_TUNING", "0")
    tuning_rows.forget()
    assert tuning.forward(SIZES, False, CARD) == builtin


def test_a_row_for_fewer_documents_than_it_takes_at_once() -> None:
    few = SIZES._replace(documents=3)
    with tuning_rows.trial({tuning_rows.key("scores", few, CARD): FORWARD}):
        assert tuning.forward(few, False, CARD).documents == 3


def test_dense_documents_that_fill_a_card_take_small_tiles() -> None:
    for documents, warps in ((527, 2), (528, 1)):
        for want_winners in (False, True):
            sizes = Sizes("CROSS", False, 2, 128, 1, 32, documents, 300)
            assert tuning.forward(sizes, want_winners, CARD).options.num_warps == warps


def test_candidates_that_fill_a_card_take_small_tiles() -> None:
    many = Sizes("CANDIDATES", False, 2, 128, 64, 32, 32, 256)
    for want_winners in (False, True):
        chosen = tuning.forward(many, want_winners, CARD)
        assert (chosen.blocks.BLOCK_N, chosen.documents, chosen.options.num_warps) == (32, 1, 1)
        for change in ({"queries": 8}, {"query_length": 64}, {"width": 320}, {"element_size": 4}):
            assert tuning.forward(many._replace(**change), want_winners, CARD).options.num_warps > 1


@pytest.mark.parametrize("layout", ["CROSS", "CANDIDATES"])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 300), (7, 20), (32, 180), (33, 63), (100, 33), (300, 1030), (1030, 5)])
@pytest.mark.parametrize("width", [8, 48, 96, 128, 320, 768])
def test_a_built_in_choice_survives_being_stored(layout: str, lengths: tuple[int, int], width: int) -> None:
    for element_size in (2, 4):
        for queries in (1, 2, 3, 9, 64, 257):
            for packed in (False, True):
                sizes = Sizes(layout, packed, element_size, width, queries, lengths[0], 40, lengths[1])
                for phase, choose in (
                    ("scores", lambda sizes: tuning.forward(sizes, False, CARD)),
                    ("queries", lambda sizes: tuning.query_gradient(sizes, CARD)),
                    ("documents", lambda sizes: tuning.sorted_gradient(sizes, CARD)),
                ):
                    chosen = choose(sizes)
                    row = tuning.as_row(chosen)
                    assert tuple(sorted(row)) == tuple(sorted(tuning_rows.FIELDS[phase]))
                    with tuning_rows.trial({tuning_rows.key(phase, sizes, CARD): row}):
                        assert choose(sizes) == chosen


@pytest.mark.parametrize("change", [{"ROWS": 48}, {"ROWS": 8}, {"num_warps": None}, {"maxnreg": 5000}, {"more": 1}])
def test_a_row_that_cannot_be_meant_is_reported_once(change: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    builtin = tuning.forward(SIZES, True, CARD)
    put(scores={**FORWARD, **change}, winners=FORWARD)
    for want_winners in (False, True):
        assert tuning.forward(SIZES, want_winners, CARD).blocks == builtin.blocks
    (warning,) = warned(caplog)
    assert f"{next(iter(change))}" in warning
    assert "Run `li-plugins tune` again" in warning


def test_a_row_that_cannot_be_built_does_not_cost_the_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = tuning_run.KERNEL
    failure = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})
    used = []

    def fails_with_rows(self, *arguments):
        used.append(tuning.forward(SIZES, False, CARD))
        if used[-1].blocks.BLOCK_N == 128:
            raise failure("shared memory")
        return "served"

    for name in ("_forward", "_backward"):
        monkeypatch.setattr(type(kernel), name, fails_with_rows)
    put(scores=FORWARD)
    assert kernel.forward(None, False) == "served"
    assert kernel.backward(None, None, None, True, True) == "served"
    assert len(used) == 3
    (warning,) = warned(caplog)
    assert "OutOfResources: shared memory" in warning
    # without rows, and while rows are tried, it is for the caller
    put(scores=FORWARD)
    with tuning_rows.trial({tuning_rows.key("scores", SIZES, CARD): FORWARD}), pytest.raises(failure):
        kernel.forward(None, False)


# In words.


def test_launches_in_words() -> None:
    (line,) = tuning_text.described(SIZES, CARD, "scores")
    assert line.startswith("tiles of 256 rows x 64 columns, ")
    assert line.endswith(" documents per program, 8 warps, 3 stages, at most 128 registers")
    assert tuning_text.described(SIZES, CARD, "winners")[1] == "winners sorted in the backward"
    queries, documents = tuning_text.described(SIZES, CARD, "backward")
    assert queries == (
        "queries' gradient: 8 rows x 128 dimensions, 8 documents at a time, 4 warps, 1 stage"
    )  # fmt: skip
    assert documents.startswith("documents' gradient: winners sorted; 64 rows x 128 dimensions at a time, 2 warps")
    few = SIZES._replace(queries=1)
    assert tuning_text.described(few, CARD, "winners")[1] == "winners not sorted in the backward"
    assert "winners not sorted; 32 query tokens x 64 document tokens" in tuning_text.described(few, CARD, "backward")[1]


# The search.


def search(measure, **more) -> Outcome:
    return tuning_search.search("queries", "key", QUERIES, measure, lambda row: tuple(row.items()), **more)


def test_the_search_keeps_what_is_fastest() -> None:
    def measure(row) -> Trial:
        if row["num_warps"] == 8:
            return Trial(None, "OutOfResources: registers")
        return Trial(1.0 - 0.1 * (row["VISITS"] == 4) - 0.1 * (row["BLOCK_D"] == 128) - 0.01 * row["num_warps"])

    tried = []
    outcome = search(measure, on_trial=tried.append)
    assert outcome.best == {**QUERIES, "ROWS": 8, "VISITS": 4, "BLOCK_D": 128, "num_warps": 4}
    assert outcome.best_ms == pytest.approx(0.76)
    assert outcome.gain == pytest.approx(1 - 0.76 / 0.98)
    assert outcome.is_better
    assert outcome.refused == ("OutOfResources: registers",)
    assert len(tried) == tuning_search.most_trials("queries")
    assert outcome.tried < len(tried)


def test_less_than_three_percent_is_not_stored() -> None:
    outcome = search(lambda row: Trial(0.98 if row["BLOCK_D"] == 128 else 1.0))
    assert outcome.best["BLOCK_D"] == 128
    assert not outcome.is_better
    outcome = search(
        lambda row: Trial(0.9 if row["BLOCK_D"] == 128 else 1.0), confirm=lambda builtin, best: (1.0, 0.99)
    )
    assert not outcome.is_better, "it was lucky once"


def test_a_row_that_was_stored_is_tried_first() -> None:
    odd = {**QUERIES, "VISITS": 64}
    outcome = search(lambda row: Trial(0.5 if row["VISITS"] == 64 else 1.0), starts=[odd])
    assert outcome.best == odd


def test_built_in_blocks_that_do_not_run_end_the_search() -> None:
    with pytest.raises(RuntimeError, match="the built-in blocks of key do not run: broken"):
        search(lambda row: Trial(None, "broken"))


# The run, with a kernel of plain torch and times that are made up.


class Plain:
    """The reference, which counts."""

    def __init__(self) -> None:
        self.spoilt = False

    supports = staticmethod(REFERENCE.supports)

    def forward(self, problem, want_winners):
        scores, winners = REFERENCE.forward(problem, want_winners)
        wrong = tuning.forward(tuning_run.sizes_of(problem), want_winners, CARD).blocks.BLOCK_N == 128
        return scores + (wrong and self.spoilt), winners

    def backward(self, *arguments):
        return REFERENCE.backward(*arguments)


SHAPE = tuning_run.Shape(9, 5, 32, 70, 16, torch.float32)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    kernel = Plain()
    monkeypatch.setattr(tuning_run, "KERNEL", kernel)
    monkeypatch.setattr(tuning_run, "card_of", lambda device: CARD)
    return kernel


def made_up(call) -> float:
    """Return 1 ms, or 0.5 where 128 columns or four documents at a time are in force."""
    call()
    sizes = tuning_run.sizes_of(tuning_run.problem_of(SHAPE, torch.device("cpu")))
    is_quick = tuning.forward(sizes, False, CARD).blocks.BLOCK_N == 128
    return 0.5 if is_quick or tuning.query_gradient(sizes, CARD).VISITS == 4 else 1.0


def tune(**more):
    outcomes = tuning_run.tune(SHAPE, torch.device("cpu"), measure=made_up, **more)
    return {outcome.phase: outcome for outcome in outcomes}


def test_tuning_stores_what_is_better_and_it_is_used(plain: Plain, file: Path) -> None:
    sizes = tuning_run.sizes_of(tuning_run.problem_of(SHAPE, torch.device("cpu")))
    assert tuning.forward(sizes, False, CARD).blocks.BLOCK_N == 64
    outcomes = tune()
    assert {phase: outcome.is_better for phase, outcome in outcomes.items()} == {
        "scores": True, "winners": False, "queries": True, "documents": False,
    }  # fmt: skip
    assert tuning.forward(sizes, False, CARD).blocks.BLOCK_N == 128
    assert tuning.forward(sizes, True, CARD).blocks.BLOCK_N == 64
    assert tuning.query_gradient(sizes, CARD).VISITS == 4
    row = json.loads(file.read_text())["rows"][0]
    assert (row["version"], row["key"]) == (tuning_file.VERSION, outcomes["scores"].key)
    assert (row["measured"]["milliseconds"], row["measured"]["builtin_milliseconds"]) == (0.5, 1.0)


def test_a_dry_run_stores_nothing(plain: Plain, file: Path) -> None:
    assert tune(dry_run=True)["scores"].is_better
    assert not file.exists()


def test_a_row_with_other_results_is_refused(plain: Plain, file: Path) -> None:
    plain.spoilt = True
    outcome = tune()["scores"]
    assert outcome.refused == ("its results are others",)
    assert not outcome.is_better


def test_a_stored_row_that_is_not_better_any_more_is_dropped(plain: Plain, file: Path) -> None:
    key = tune()["scores"].key
    assert key in tuning_file.rows()
    tuning_run.tune(SHAPE, torch.device("cpu"), measure=lambda call: 1.0)
    assert tuning_file.rows() == {}


def test_nothing_is_measured_where_nothing_could_be_stored(plain: Plain, file: Path) -> None:
    file.parent.mkdir()
    file.write_text("my thesis")
    with pytest.raises(BadInput, match="move the file away"):
        tuning_run.tune(SHAPE, torch.device("cpu"), measure=lambda call: pytest.fail("measured"))


def test_candidates_have_no_sorted_winners() -> None:
    problem = tuning_run.problem_of(SHAPE._replace(candidates=True), torch.device("cpu"))
    assert problem.documents.shape == (9, 5, 70, 16)
    assert tuning_run.phases_of(problem) == ["scores", "winners", "queries"]


def test_what_counts_as_the_same_results() -> None:
    numbers = torch.linspace(-1, 1, 1000)
    near = numbers * (1 + 1e-7)
    assert tuning_run.differs((near,), (numbers,)) == ""
    assert tuning_run.differs((near + 1e-3,), (numbers,)) == "its results are others"
    assert tuning_run.differs((torch.full_like(near, float("nan")),), (numbers,)) == "its results are others"
    winners = torch.arange(2000)
    other = winners.clone()
    other[0] = -1
    assert tuning_run.differs((other,), (winners,)) == ""
    other[:10] = -1
    assert tuning_run.differs((other,), (winners,)) == "0.5% of the winners are others"
