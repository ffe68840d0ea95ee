"""A side of the search demo that cannot do its work says so, and where to read more."""

from importlib.util import find_spec

import pytest
from indexed_search import sides
from indexed_search.worker import Job
from retrieval_demo.errors import DemoError


@pytest.mark.skipif(find_spec("colbert") is not None, reason="colbert-ai is installed, and compiles for minutes")
def test_a_side_without_its_library(tmp_path):
    job = Job(False, tmp_path, tmp_path / "none", ["a text"], ["a query"], 10, "index", ["index"])
    with (
        sides.progress() as shown,
        pytest.raises(DemoError, match=r"colbert-ai: ModuleNotFoundError: .*colbert") as said,
    ):
        sides.run(job, "colbert-ai", shown, tmp_path / "log")
    assert str(tmp_path / "log") in str(said.value)
    assert "Traceback" in (tmp_path / "log").read_text()
