"""A retrieval collection in BEIR layout: documents, queries and graded judgments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_demo.errors import DemoError

LAYOUT = "BEIR layout is corpus.jsonl, queries.jsonl and qrels.tsv (or qrels/test.tsv)"


@dataclass(frozen=True)
class Collection:
    """Texts in file order, and which document answers which query.

    Every query has at least one relevant document. ``judgments[query_id][document_id]`` is the grade, always positive.
    """

    name: str
    document_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    judgments: Mapping[str, Mapping[str, int]]


def read_collection(folder: Path, limit: int | None = None) -> Collection:
    """Read a folder in BEIR layout.

    Parameters
    ----------
    folder
        Holds ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv`` or ``qrels/test.tsv``.
    limit
        Keep the first ``limit`` documents, and the queries with a relevant document among them.

    Raises
    ------
    DemoError
        A file is missing, a line cannot be read, or no query has a relevant document.
    """
    corpus = {record["_id"]: _text(record) for record in _records(_existing(folder, "corpus.jsonl"), limit)}
    texts = {record["_id"]: _text(record) for record in _records(_existing(folder, "queries.jsonl"))}
    judgments: dict[str, dict[str, int]] = {}
    for query, document, grade in _grades(_existing(folder, "qrels.tsv", "qrels/test.tsv")):
        if grade > 0 and query in texts and document in corpus:
            judgments.setdefault(query, {})[document] = grade
    queries = {query: text for query, text in texts.items() if query in judgments}
    if not queries:
        raise DemoError(
            f"{folder}: no query has a relevant document among {len(corpus)} documents; "
            "raise --documents, or check that the ids of the three files agree"
        )
    return Collection(
        name=folder.resolve().name,
        document_ids=list(corpus),
        documents=list(corpus.values()),
        query_ids=list(queries),
        queries=list(queries.values()),
        judgments=judgments,
    )


def _existing(folder: Path, *names: str) -> Path:
    """First of the named files that exists."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DemoError(f"{folder}: no {' or '.join(names)}; {LAYOUT}")


def _records(path: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """JSON objects of a file, one per line, with ``_id`` as a string; blank lines are skipped."""
    count = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and count == limit:
                return
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                record["_id"] = str(record["_id"])
            except (ValueError, KeyError, TypeError) as error:
                raise DemoError(f"{path}:{number}: {error!r}; each line must be an object with _id and text") from error
            count += 1
            yield record


def _text(record: Mapping[str, Any]) -> str:
    """Title and text in one string, as BEIR joins them; an empty document stays the empty string."""
    return f"{record.get('title') or ''} {record.get('text') or ''}".strip()


def _grades(path: Path) -> Iterator[tuple[str, str, int]]:
    """Rows of a judgments file; a first line without a number is its header."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            fields = line.split()
            try:
                query, document, grade = fields
                yield query, document, int(grade)
            except ValueError as error:
                if number > 1:
                    raise DemoError(f"{path}:{number}: {line!r}; a line is query, document, grade") from error
