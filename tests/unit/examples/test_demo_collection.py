"""Reading a collection in BEIR layout."""

import json
from pathlib import Path

import pytest
from retrieval_demo.collection import read_collection
from retrieval_demo.errors import DemoError

CRANFIELD = Path(__file__).resolve().parents[3] / "examples" / "cranfield"


def write(folder, corpus=None, queries=None, qrels="query-id\tcorpus-id\tscore\nq1\td1\t1\n", qrels_name="qrels.tsv"):
    corpus = corpus or [{"_id": "d1", "title": "Wings", "text": "lift"}, {"_id": "d2", "title": "", "text": ""}]
    queries = queries or [{"_id": "q1", "text": "what lifts?"}, {"_id": "q2", "text": "unjudged"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / qrels_name).parent.mkdir(exist_ok=True)
    (folder / qrels_name).write_text(qrels)
    return folder


def test_cranfield_is_whole():
    collection = read_collection(CRANFIELD)
    assert (len(collection.documents), len(collection.queries)) == (1400, 225)
    empty = [name for name, text in zip(collection.document_ids, collection.documents, strict=True) if not text]
    assert empty == ["471", "995"]
    assert sum(map(len, collection.judgments.values())) == 1612
    assert collection.judgments["1"]["184"] == 3


def test_title_and_text_are_joined_and_empty_documents_kept(tmp_path):
    collection = read_collection(write(tmp_path))
    assert collection.documents == ["Wings lift", ""]


def test_queries_without_a_relevant_document_are_left_out(tmp_path):
    collection = read_collection(write(tmp_path, qrels="q1\td1\t1\nq2\td1\t0\n"))
    assert collection.query_ids == ["q1"]
    assert collection.judgments == {"q1": {"d1": 1}}


def test_a_cut_keeps_the_first_documents_and_their_queries(tmp_path):
    write(tmp_path, qrels="query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\n")
    assert read_collection(tmp_path, 1).query_ids == ["q1"]
    assert read_collection(tmp_path, 2).query_ids == ["q1", "q2"]


def test_judgments_may_lie_in_their_folder_and_ids_be_numbers(tmp_path):
    write(tmp_path, corpus=[{"_id": 7, "text": "lift"}], qrels="q1\t7\t1\n", qrels_name="qrels/test.tsv")
    assert read_collection(tmp_path).judgments == {"q1": {"7": 1}}


def test_a_missing_file_is_named_with_the_layout(tmp_path):
    with pytest.raises(DemoError, match=r"no corpus\.jsonl; BEIR layout"):
        read_collection(tmp_path)
    write(tmp_path)
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(DemoError, match=r"no qrels\.tsv or qrels/test\.tsv"):
        read_collection(tmp_path)


def test_a_bad_line_is_named_by_its_number(tmp_path):
    write(tmp_path)
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "fine"}\n{"text": "no id"}\n')
    with pytest.raises(DemoError, match=r"queries\.jsonl:2: .*_id"):
        read_collection(tmp_path)
    write(tmp_path, qrels="q1\td1\t1\nq1\td2\tmany\n")
    with pytest.raises(DemoError, match=r"qrels\.tsv:2"):
        read_collection(tmp_path)


def test_no_judged_query_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(DemoError, match="raise --documents"):
        read_collection(write(tmp_path, qrels="q1\tunknown\t1\n"))
