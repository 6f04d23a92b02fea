"""Terminal output: no control sequences from outside, and one line per log record."""

import json
import logging
import sys

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autoplay_rag.cli import console
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


ROW = ("0.590", "ps_99b4cf1c49fe", "u_030", "2026-03-03 08:36", 'saw "This code has expired"')
HEADS = ("score", "session", "user", "when", "what")


def drawn_on_a_terminal(monkeypatch, capsys, width):
    terminal = Console(force_terminal=True, color_system=None, width=width, soft_wrap=True)
    monkeypatch.setattr(console, "out", terminal)
    table(HEADS, [ROW], title="Whose promo code had expired when they upgraded?")
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_on_a_terminal_a_table_has_heads(monkeypatch, capsys):
    assert drawn_on_a_terminal(monkeypatch, capsys, 80) == [
        "Whose promo code had expired when they upgraded?",
        "score  session          user   when              what",
        '0.590  ps_99b4cf1c49fe  u_030  2026-03-03 08:36  saw "This code has expired"',
    ]


def test_on_a_narrow_terminal_a_row_is_a_paragraph(monkeypatch, capsys):
    assert drawn_on_a_terminal(monkeypatch, capsys, 39) == [
        "Whose promo code had expired when they",
        "upgraded?",
        "0.590  ps_99b4cf1c49fe  u_030",
        '  2026-03-03 08:36  saw "This code has',
        '  expired"',
    ]


def test_on_the_narrowest_terminal_nothing_is_lost(monkeypatch, capsys):
    lines = drawn_on_a_terminal(monkeypatch, capsys, 1)
    assert "".join("".join(lines).split()).endswith('saw"Thiscodehasexpired"')


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
