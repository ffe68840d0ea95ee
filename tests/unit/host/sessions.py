"""What tests read off a session with fake adapters: the states of its targets, and what it logged."""

from __future__ import annotations

import importlib
import logging

from li_plugins.host.report import Row, Status
from li_plugins.host.session import Session


def rows(status: Status, adapter: str = "fake") -> dict[str, Row]:
    return {row.target.rpartition(".scores:")[2]: row for row in status.rows if row.adapter == adapter}


def states(session: Session, adapter: str = "fake") -> dict[str, str]:
    return {name: row.state for name, row in rows(session.status(), adapter).items()}


def scores(name: str = "fakelib"):
    return importlib.import_module(f"{name}.scores")


def messages(caplog, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]
