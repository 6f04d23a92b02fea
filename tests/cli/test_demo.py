"""`autoplay-rag demo`, on a terminal and without one."""

import re

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def test_it_stores_all_and_finds_what_it_should(cli, tmp_path):
    ended = cli("demo", "--folder", "kept")
    assert ended.returncode == 0
    assert "Stored 369 of 369 events" in ended.stdout
    assert "Who exported the revenue by region report to Excel?\n0." in ended.stdout
    # Each question is followed by the line that answers it, not by the beginning of a visit.
    for answer in (
        "revenue by region report, grouped it by country for the last quarter and downloaded it",
        "Valentine's campaign started",
        'saw the message "This code has expired"',
    ):
        assert answer in ended.stdout
    first, among = map(int, re.findall(r"(\d+)[,.]", ended.stdout.splitlines()[-1])[-2:])
    assert 45 <= first <= among <= 62
    assert among >= 55
    assert (tmp_path / "kept" / "chroma.sqlite3").exists()
    assert "autoplay-rag search" in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr


def test_on_a_terminal_it_is_alive(terminal, tmp_path):
    code, shown = terminal("demo", TMPDIR=str(tmp_path))
    assert code == 0
    assert shown.count("events/s") > 5, "the display was drawn again and again"
    assert "connected" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"
    assert "Of all 62 sample questions" in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.glob("autoplay-rag-*")), "the store was thrown away"
