"""`autoplay-rag demo`, on a terminal and without one."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
NARROW = 39
"""How many characters of a code block GitHub shows on a screen of 390 pixels."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def test_it_stores_all_and_finds_what_it_should(cli, tmp_path):
    ended = cli("demo", "--folder", "kept")
    assert ended.returncode == 0
    assert "Stored 369 of 369 events" in ended.stdout
    assert "Who exported the revenue by region report to Excel?\n0." in ended.stdout
    # The line after each question is the one that answers it, not the beginning of a visit.
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


def test_the_readme_shows_what_a_narrow_terminal_shows(terminal):
    block = next(each for each in readme_blocks() if "$ make demo\n" in each)
    assert max(map(len, block.splitlines())) <= NARROW
    code, shown = terminal("demo", COLUMNS=str(NARROW), TZ="UTC")
    assert code == 0
    shown = without_the_duration(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown))
    at = 0
    for part in block.partition("$ make demo\n")[2].split("...\n"):
        at = shown.index(without_the_duration(part), at) + len(part)


def readme_blocks():
    top = README.read_text().partition("\n## ")[0]
    return re.findall(r"^```console\n(.*?)^```$", top, re.DOTALL | re.MULTILINE)


def without_the_duration(text):
    return re.sub(r"in\s\d+ s\.", "in N s.", text)
