"""Terminal output: no control sequences from outside, and one line per log record."""

import json
import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.cli.console import JsonFormatter, OneLineFormatter, clean, table


@given(st.text())
def test_clean_text_is_one_line_that_moves_no_cursor(text):
    assert clean(text).isprintable()


def test_clean_text_keeps_what_can_be_read():
    assert clean("Übersicht — 価格 ✓") == "Übersicht — 価格 ✓"
    assert clean("two\n lines\t") == "two lines"


def test_without_a_terminal_a_table_is_tab_separated(capsys):
    table(("score", "session"), [("0.9", "s1"), ("0.8", "s2")], title="Who?")
    assert capsys.readouterr().out == "Who?\n0.9\ts1\n0.8\ts2\n"


def test_a_log_record_is_one_line_without_its_traceback(caplog):
    try:
        raise_one()
    except RuntimeError:
        logging.getLogger("autoplay_rag.x").exception("a callback\nfailed: %s", "\x1b[2J")
    (record,) = caplog.records
    line = OneLineFormatter("%(levelname)s %(message)s").format(record)
    assert line == "ERROR a callback failed: \ufffd[2J (RuntimeError)"
    assert record.exc_info is not None, "other handlers still have it all"


def test_a_log_record_as_json_has_its_time_and_all_of_its_text():
    try:
        raise_one()
    except RuntimeError:
        why = sys.exc_info()
    # The name of a file that is not UTF-8 contains a lone surrogate.
    message = ("a callback\nfailed: %s", ("✓\ud800",))
    record = logging.LogRecord("autoplay_rag.x", logging.ERROR, "x.py", 1, *message, why)
    record.created = 1.5
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "ERROR",
        "logger": "autoplay_rag.x",
        "message": "a callback\nfailed: ✓?",
        "error": "RuntimeError",
    }
    assert "boom" in json.loads(JsonFormatter(tracebacks=True).format(record))["traceback"]


def raise_one():
    raise RuntimeError("boom")
