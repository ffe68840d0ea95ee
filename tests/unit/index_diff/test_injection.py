"""B's build made again with artifacts of A: what that explains, and what it does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from written_index import captured, centroids, made, nudged

from li_plugins.errors import BadInput
from li_plugins.index_diff.comparison import compare
from li_plugins.index_diff.replay import replay


def coded(index, table, **changes):
    """Return the index as it is with other centroids."""
    codes = (index.rows.double() @ table.double().T).argmax(1).int()
    return replace(index, centroids=table, codes=codes, **changes)


@pytest.fixture
def builds(tmp_path):
    """Return two captured indexes of one encoder: centroids and buckets are not the same."""
    index = made(passages=60)
    other = coded(index, centroids(seed=5), cutoffs=index.cutoffs * 1.5, weights=index.weights * 1.5)
    return captured(index, tmp_path / "a"), captured(other, tmp_path / "b", states={"torch": torch.zeros(5056)})


def states(a, b):
    return {finding.artifact: finding.state for finding in compare(a, b).findings}


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_what_is_made_again_of_a_build_s_own_is_the_build(tmp_path, nbits):
    a = captured(made(nbits, passages=30), tmp_path / "a")
    replay(a, a, (), tmp_path / "again")
    assert set(states(a, tmp_path / "again").values()) == {"identical"}


def test_each_artifact_explains_what_is_made_of_it(builds, tmp_path):
    a, b = builds
    before = states(a, b)
    assert [before[name] for name in ("codes", "residuals", "ivf")] == ["differs"] * 3
    replay(a, b, ["centroids"], tmp_path / "c")
    found = states(a, tmp_path / "c")
    assert [found[name] for name in ("centroids", "codes", "ivf")] == ["identical"] * 3
    assert found["residuals"] == "differs"
    replay(a, b, ["buckets", "centroids"], tmp_path / "d")
    assert {name for name, state in states(a, tmp_path / "d").items() if state != "identical"} == {"rng"}
    replay(a, b, ["buckets"], tmp_path / "e")
    assert states(a, tmp_path / "e")["codes"] == "differs"


def test_the_encoder_of_a(tmp_path):
    index = made(passages=60)
    far = nudged(index.rows.roll(1, 1))
    a = captured(index, tmp_path / "a")
    b = captured(coded(replace(index, rows=far), index.centroids), tmp_path / "b")
    assert states(a, b)["codes"] == "differs"
    replay(a, b, ["embeddings"], tmp_path / "c")
    found = states(a, tmp_path / "c")
    assert [found[name] for name in ("embeddings", "codes", "residuals", "ivf")] == ["identical"] * 4


def test_what_cannot_be_injected(builds, tmp_path):
    a, b = builds
    plain = made(passages=60).write(tmp_path / "plain")
    other = captured(made(passages=20), tmp_path / "other")
    for first, second, names, says in [
        (a, b, ["rng"], "capture --inject"),
        (a, plain, ["centroids"], "no capture"),
        (plain, b, ["embeddings"], "no capture"),
        (other, b, ["embeddings"], "the same passages"),
    ]:
        with pytest.raises(BadInput, match=says):
            replay(first, second, names, tmp_path / f"to-{says.replace(' ', '-')}")
    with pytest.raises(BadInput, match="it is there"):
        replay(a, b, ["centroids"], plain)


def test_the_command(builds, tmp_path, capsys):
    from li_plugins.__main__ import main

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["index-diff", "inject", *map(str, arguments)])
        return (exit_.value.code, *capsys.readouterr())

    a, b = builds
    code, out, _ = call(a, b, "centroids")
    assert code == 1
    assert "Explained by A's centroids: codes, ivf." in out
    assert "Not explained by A's centroids: residuals, reconstruction." in out
    code, out, _ = call(a, b, "centroids", "buckets", "--json", "--to", tmp_path / "kept")
    found = json.loads(out)
    assert code == 0
    assert (found["before"]["same"], found["same"]) == (False, True)
    assert found["explained"] == ["codes", "residuals", "ivf", "reconstruction"]
    assert torch.equal(torch.load(tmp_path / "kept" / "0.codes.pt"), torch.load(a / "0.codes.pt"))
    assert call(a, b, "codes")[0] == 2
    assert "Made again, B differs in codes" in call(a, b)[1]
