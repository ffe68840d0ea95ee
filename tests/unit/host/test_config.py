"""Settings: precedence, words, and what is said about values without meaning."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from li_plugins.host import config
from li_plugins.host.config import Config


@pytest.fixture
def clean_logger():
    """Give the logger its level and handlers back."""
    logger = logging.getLogger("li_plugins")
    level, handlers = logger.level, list(logger.handlers)
    yield logger
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_defaults():
    assert Config.read({}) == Config()
    assert Config().switch == "unset"


@pytest.mark.parametrize(
    ("value", "switch", "names"),
    [
        ("", "unset", ()),
        ("  ", "unset", ()),
        (",", "unset", ()),
        ("0", "off", ()),
        ("Off", "off", ()),
        ("1", "all", ()),
        (" ALL ", "all", ()),
        ("pylate", "some", ("pylate",)),
        ("pylate, colpali,,pylate", "some", ("pylate", "colpali")),
        ("1,colbert-compat", "all", ("colbert-compat",)),
        ("colbert-compat, ALL", "all", ("colbert-compat",)),
    ],
)
def test_the_switch_reads_as_people_write_it(value, switch, names):
    found = Config.read({"LI_PLUGINS": value})
    assert (found.switch, found.names, found.problems) == (switch, names, ())


def test_arguments_win_over_the_environment():
    environ = {"LI_PLUGINS_STRICT": "1", "LI_PLUGINS_UNTESTED": "0"}
    assert Config.read(environ).strict
    assert not Config.read(environ, strict=False).strict
    assert Config.read(environ, untested=True).untested


def test_reads_the_process_environment_by_default(monkeypatch):
    monkeypatch.setenv("LI_PLUGINS_LOG", "info")
    assert Config.read().log == "info"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("LI_PLUGINS_STRICT", "maybe", "LI_PLUGINS_STRICT takes 1 or 0; found 'maybe'; correct it or unset it"),
        ("LI_PLUGINS_UNTESTED", "2", "takes 1 or 0; found '2'"),
        ("LI_PLUGINS_LOG", "verbose", "takes debug, info or warning; found 'verbose'"),
        ("LI_PLUGINS_STRIKT", "1", "did you mean LI_PLUGINS_STRICT?"),
    ],
)
def test_a_bad_value_is_a_problem_that_says_what_to_do_and_the_default_holds(variable, value, says):
    found = Config.read({variable: value})
    assert len(found.problems) == 1
    assert says in str(found.problems[0])
    assert (found.strict, found.untested, found.log) == (False, False, "")


def test_a_plugins_own_variable_is_no_problem():
    assert Config.read({"LI_PLUGINS_CUTE_TILES": "4"}).problems == ()


def test_every_field_of_the_environment_is_in_the_table_and_the_table_in_markdown():
    names = [variable.name for variable in config.VARIABLES]
    assert names == [
        "LI_PLUGINS", "LI_PLUGINS_STRICT", "LI_PLUGINS_UNTESTED", "LI_PLUGINS_LOG", "LI_PLUGINS_BACKEND",
        "LI_PLUGINS_WINNERS", "LI_PLUGINS_TUNING", "LI_PLUGINS_COLPALI_FLOOR", "LI_PLUGINS_COLPALI_BOUNDS",
        "LI_PLUGINS_COLBERT_GRAPHS",
    ]  # fmt: skip
    table = config.markdown_table().splitlines()
    assert len(table) == 2 + len(names)
    assert all(line.count("|") == table[0].count("|") == 5 for line in table)


def test_the_log_level_is_set_and_the_handler_added_once(clean_logger):
    before = len(clean_logger.handlers)
    for _ in range(2):
        config.set_up_logging(Config(log="info"))
    assert clean_logger.level == logging.INFO
    assert len(clean_logger.handlers) == before + 1
    config.set_up_logging(Config())
    assert clean_logger.level == logging.INFO


@pytest.mark.parametrize(("setup", "lines"), [("", 1), ("logging.basicConfig(format='root %(message)s')", 1)])
def test_a_record_is_shown_once_whether_or_not_the_program_has_handlers(setup, lines):
    code = f"""
import logging
from li_plugins.host.config import Config, set_up_logging
{setup}
set_up_logging(Config(log="info"))
logging.getLogger("li_plugins").info("li_plugins: hello")
logging.getLogger("li_plugins").debug("li_plugins: quiet")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("li_plugins: hello") == lines
    assert "quiet" not in done.stderr
    assert ("root" in done.stderr) == bool(setup)
