"""Two index folders compared: what is said of each artifact, and where the builds are said to part."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch.nn.functional import normalize
from written_index import CENTROIDS, DIM, centroids, embeddings, made, states

from li_plugins.index_diff.comparison import compare


def test_the_same_index_twice(compared):
    report = compared(made(), made())
    assert set(states(report).values()) == {"identical"}
    assert report.same
    assert report.diagnosis.first is None
    assert report.finding("doclens").figures["tokens"][0] > 50
    assert report.finding("reconstruction").figures["least_cosine"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_the_reconstruction_is_that_of_the_codec(tmp_path, nbits):
    """The decoded embeddings are near the embeddings, so bytes are read in the library's order."""
    from li_plugins.index_diff.folder import IndexFolder
    from li_plugins.ops import decompress

    index = made(nbits)
    folder = IndexFolder(index.write(tmp_path / "a"))
    codec = folder.codec
    rows = torch.cat([
        decompress(folder.codes(chunk), folder.residuals(chunk), codec.centroids, codec.weights, nbits=nbits)
        for chunk in range(folder.chunks)
    ])  # fmt: skip
    cosine = (rows * normalize(index.rows.float(), dim=1)).sum(1).mean()
    assert cosine > {1: 0.9, 2: 0.97, 4: 0.99, 8: 0.999}[nbits]


def test_other_chunks_are_the_same_index(compared):
    report = compared(made(), replace(made(), chunk_passages=3))
    assert {name: state for name, state in states(report).items() if state != "identical"} == {"files": "missing"}
    assert "in 3 and 5 chunks" in report.finding("doclens").text
    assert report.finding("files").figures["only_in_b"][0] == "3.codes.pt"


def test_centroids_in_another_order(compared):
    order = torch.randperm(CENTROIDS, generator=torch.Generator().manual_seed(3))
    report = compared(made(), made().reordered(order))
    found = states(report)
    assert [found[name] for name in ("centroids", "codes", "ivf")] == ["reordered"] * 3
    # the bytes are the same, at other numbers
    assert report.finding("residuals").figures["where_codes_agree"] == "identical"
    assert found["reconstruction"] == "identical"
    assert report.same
    assert report.diagnosis.first is None
    assert report.diagnosis.drifts == "centroids"
    assert report.verdict() == ["The same, but for the order of centroids."]
    assert report.finding("centroids").figures["moved"] == int((order != torch.arange(CENTROIDS)).sum())


def test_drift_within_rounding_is_close(compared):
    index = made()
    noisy = (index.centroids.float() * (1 + 2**-11)).half()
    assert (noisy != index.centroids).any()
    report = compared(index, replace(index, centroids=noisy))
    assert states(report)["centroids"] == "close"
    assert report.finding("centroids").figures["max_ulp"] == 1
    assert report.same


def test_a_tie_that_fell_the_other_way(compared):
    """Two centroids as near as each other: a token of one is put to the other, and its residual follows."""
    index = made(passages=120)
    table = index.centroids.clone()
    table[1] = normalize(table[0].float() + 0.004 * torch.randn(DIM, generator=torch.Generator().manual_seed(1)), dim=0)
    index = replace(index, centroids=table)
    index = index.with_codes((index.rows.double() @ table.double().T).argmax(1).int())
    flipped = index.codes.clone()
    token = int((flipped == 0).nonzero()[0])
    flipped[token] = 1
    report = compared(index, index.with_codes(flipped))
    codes = report.finding("codes")
    assert codes.state == "close"
    assert (codes.figures["ties"], codes.figures["no_ties"]) == (1, 0)
    middle = (index.rows[token].double() * (table[0] - table[1]).double()).sum().abs()
    assert codes.figures["greatest_loss"] == pytest.approx(float(middle), abs=0.005)
    assert report.finding("residuals").figures["moved"] == 0
    assert report.same
    assert report.diagnosis.drifts == "codes"


def test_a_code_that_is_no_tie_is_the_first_to_diverge(compared):
    index = made(passages=120)
    codes = index.codes.clone()
    codes[7] = (codes[7] + 1) % CENTROIDS
    report = compared(index, index.with_codes(codes))
    found = report.finding("codes")
    assert (found.state, found.figures["no_ties"]) == ("differs", 1)
    assert report.diagnosis.first == "codes"
    (cause,) = report.diagnosis.causes
    assert "the centroids agree" in cause.hint
    assert set(cause.explains) == {"residuals", "ivf"}
    assert report.finding("ivf").figures["cells_that_codes_contradict"] == [0, 0]
    assert report.finding("ivf").figures["changed_cells"] in (1, 2)


def test_other_centroids_explain_what_is_made_of_them(compared):
    index, table = made(passages=60), centroids(seed=9)
    other = replace(index, centroids=table, codes=(index.rows.double() @ table.double().T).argmax(1).int())
    report = compared(index, other)
    assert report.diagnosis.first == "centroids"
    (cause,) = report.diagnosis.causes
    assert set(cause.explains) == {"codes", "residuals", "ivf"}
    assert {"buckets", "avg_residual"} <= set(report.diagnosis.agrees)
    assert not report.same


def test_other_bits_change_buckets_and_residuals_alone(compared):
    report = compared(made(2, passages=60), made(4, passages=60))
    found = states(report)
    assert [found[name] for name in ("settings", "buckets", "residuals")] == ["differs"] * 3
    assert [found[name] for name in ("centroids", "codes", "ivf", "doclens")] == ["identical"] * 4
    assert report.finding("residuals").figures["nbits"] == [2, 4]
    assert report.finding("reconstruction").figures["mean_cosine"] > 0.97
    assert [cause.artifact for cause in report.diagnosis.causes] == ["settings"]
    assert set(report.diagnosis.causes[0].explains) == {"buckets", "residuals"}


def test_what_a_setting_does_not_reach_has_a_cause_of_its_own(compared):
    index, table = made(passages=60), centroids(seed=9)
    report = compared(index, replace(made(4, passages=60), centroids=table))
    assert report.diagnosis.first == "settings"
    assert [cause.artifact for cause in report.diagnosis.causes] == ["settings", "centroids"]


def test_passages_of_another_length_are_left_out(compared):
    index = made(passages=20)
    lengths = list(index.doclens)
    first = lengths[0] + lengths[1]
    lengths[0], lengths[1] = lengths[0] - 1, lengths[1] + 1
    report = compared(index, replace(index, doclens=lengths))
    assert "2 of 20 passages have another length" in report.finding("doclens").text
    codes = report.finding("codes")
    assert codes.figures["passages_left_out"] == 2
    assert codes.figures["tokens"] == len(index.rows) - first
    assert codes.state == "identical"
    assert report.diagnosis.first == "doclens"


def test_fewer_passages(compared):
    index = made(passages=20)
    kept = sum(index.doclens[:17])
    fewer = replace(index, doclens=index.doclens[:17], rows=index.rows[:kept], codes=index.codes[:kept])
    report = compared(index, fewer)
    assert "20 and 17 passages" in report.finding("doclens").text
    assert report.finding("codes").figures["tokens"] == kept
    assert states(report)["metadata"] == "differs"


def test_residuals_that_codes_do_not_explain(compared):
    index = made(passages=60)
    bytes_ = index.bytes().clone()
    bytes_[5] ^= 255
    report = compared(index, replace(index, residuals=bytes_))
    assert report.diagnosis.first == "residuals"
    figures = report.finding("residuals").figures
    # every bit of one row of DIM numbers: each bucket becomes 3 less itself
    assert figures["moved"] == pytest.approx(DIM / (len(index.rows) * DIM))
    assert figures["greatest_move"] == 3


def test_an_inverted_file_that_is_not_of_its_codes(compared, tmp_path):
    index = made(passages=30)
    compared(index, index)
    passages, lengths = index.cells()
    absent = next(passage for passage in range(30) if passage not in passages[: lengths[0]].tolist())
    passages[0] = absent
    torch.save((passages, lengths), tmp_path / "b" / "ivf.pid.pt")
    report = compare(tmp_path / "a", tmp_path / "b")
    ivf = report.finding("ivf")
    assert ivf.figures["cells_that_codes_contradict"] == [0, 1]
    assert (ivf.state, report.diagnosis.first) == ("differs", "ivf")


def test_the_padding_of_the_inverted_file_and_the_shape_of_a_number_do_not_count(compared, tmp_path):
    index = made()
    compared(index, index)
    passages, lengths = index.cells()
    torch.save((passages[: int(lengths.sum())], lengths), tmp_path / "b" / "ivf.pid.pt")
    torch.save(torch.tensor([0.05]), tmp_path / "b" / "avg_residual.pt")
    assert set(states(compare(tmp_path / "a", tmp_path / "b")).values()) == {"identical"}


def test_weights_in_half_precision_are_compared_in_it(compared):
    index = made()
    report = compared(index, replace(index, weights=index.weights.half()))
    buckets = report.finding("buckets")
    assert (buckets.state, buckets.figures["weights"]["dtypes"]) == ("close", ["float32", "float16"])
    assert buckets.figures["weights"]["different"] == 0
    assert report.same


def test_codes_of_another_dtype_are_told_of(compared):
    index = made()
    report = compared(index, replace(index, codes=index.codes.long()))
    assert states(report)["codes"] == "close"
    assert report.finding("codes").figures["dtypes"] == ["int32", "int64"]
    assert report.same


def test_what_is_counted_of_a_chunk(compared, tmp_path):
    compared(made(), made())
    path = tmp_path / "b" / "1.metadata.json"
    path.write_text(path.read_text().replace('"passage_offset": 5', '"passage_offset": 6'))
    report = compare(tmp_path / "a", tmp_path / "b")
    assert report.diagnosis.first == "metadata"
    assert report.finding("metadata").figures["chunks"] == ["1.metadata.json"]


def test_more_centroids(compared):
    index = made()
    more = torch.cat([index.centroids, -index.centroids[:3]])
    report = compared(index, replace(index, centroids=more))
    assert report.finding("centroids").text.startswith("12 and 15 centroids")
    assert states(report)["codes"] == "identical"
    assert report.finding("ivf").figures["changed_cells"] == 3


@pytest.mark.parametrize("suffix", ["pt", "npy"])
def test_rankings(compared, tmp_path, suffix):
    import numpy

    queries = torch.stack([embeddings(4, seed) for seed in range(6)]).float()
    path = tmp_path / f"queries.{suffix}"
    torch.save(queries, path) if suffix == "pt" else numpy.save(path, queries.numpy())
    index = made(passages=40)
    report = compared(index, replace(index, residuals=index.bytes() ^ 36), queries=path, top_k=5)
    figures = report.finding("rankings").figures
    assert (figures["queries"], figures["k"]) == (6, 5)
    assert figures["greatest_score_gap"] > 0.01
    expected = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        found = compare(folder, folder, queries=path, top_k=5)
        assert states(found)["rankings"] == "identical"
        expected.append(obvious_best(folder, queries, 5))
    shared = [len(set(one) & set(other)) / 5 for one, other in zip(*expected, strict=True)]
    assert figures["mean_overlap"] == pytest.approx(sum(shared) / 6)
    assert figures["least_overlap"] == pytest.approx(min(shared))
    orders = [obvious_tau(one, other) for one, other in zip(*expected, strict=True)]
    assert figures["mean_kendall_tau"] == pytest.approx(sum(orders) / 6)
    assert -1 < figures["mean_kendall_tau"] < 1


def obvious_tau(one, other):
    """Return Kendall's tau of what is in both lists by the definition: pairs in one order less those in the other."""
    pairs = list(combinations(set(one) & set(other), 2))
    agree = [(one.index(x) < one.index(y)) == (other.index(x) < other.index(y)) for x, y in pairs]
    return (sum(agree) - agree.count(False)) / len(pairs)


def obvious_best(folder, queries, k):
    """Return the best passages of each query by the definition, from the folder's files."""
    from li_plugins.index_diff.folder import IndexFolder
    from li_plugins.ops import decompress

    index, scores = IndexFolder(folder), []
    codec = index.codec
    for chunk in range(index.chunks):
        rows = decompress(
            index.codes(chunk), index.residuals(chunk), codec.centroids, codec.weights, nbits=codec.nbits
        ).double()
        for passage in rows.split(index.doclens(chunk).tolist()):
            scores.append((queries.double() @ passage.T).amax(2).sum(1))
    return torch.stack(scores, 1).topk(k, dim=1).indices.tolist()


# The command


@pytest.fixture
def command(capsys):
    """Return a function that runs ``li-plugins index-diff`` in this process: exit code, stdout, stderr."""
    from li_plugins.__main__ import main

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["index-diff", *map(str, arguments)])
        return (exit_.value.code, *capsys.readouterr())

    return call


def test_exit_codes_and_json(command, tmp_path):
    a, b = made().write(tmp_path / "a"), made(4).write(tmp_path / "b")
    code, out, _ = command("diff", a, a)
    assert code == 0
    assert "The same." in out
    code, out, _ = command("diff", a, b)
    assert code == 1
    for words in ("First to diverge: settings.", "Explains: buckets, residuals.", "nbits: 2 and 4"):
        assert words in out
    assert "\x1b" not in out
    code, out, error = command("diff", a, b, "--json")
    assert (code, error) == (1, "")
    found = json.loads(out)
    assert found["diagnosis"]["first"] == "settings"
    assert {finding["artifact"] for finding in found["findings"]} >= {"centroids", "codes", "residuals", "ivf"}
    (b / "centroids.pt").write_bytes(b"")
    code, out, error = command("diff", a, b)
    assert (code, out) == (2, "")
    assert "centroids.pt" in error
    assert command("diff", a, tmp_path / "nowhere")[0] == 2
