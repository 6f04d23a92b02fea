"""The table that `make bench` prints and writes, and short runs of what fills it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import million, stored
from benchmarks.machine import machine
from benchmarks.table import HEAD, Figure, rows

GOOD = Figure("lag", "2 ms", "SDK 9 ms", "at most 5 ms", met=True)
BAD = Figure("rate", "3", "4", "at least 4", met=False)
README = Path(__file__).parents[1] / "README.md"


def test_a_row_says_the_bar_and_whether_it_was_met():
    assert list(rows([GOOD, BAD])) == [
        HEAD,
        "| lag | 2 ms | SDK 9 ms | at most 5 ms | yes |",
        "| rate | 3 | 4 | at least 4 | NO |",
    ]


def test_a_report_counts_what_was_missed_and_names_the_machine(capsys):
    table = bench.report(iter([GOOD, BAD]))
    assert "2 figures, 1 of them below their bar" in table
    assert table.endswith(f"Machine: {machine()}.")
    assert capsys.readouterr().out.strip() == table


def test_a_benchmark_that_fails_does_not_end_the_others(monkeypatch, capsys):
    monkeypatch.setattr(stored, "main", lambda: [GOOD])
    monkeypatch.setattr(million, "main", lambda: 1 / 0)
    failed, good = bench.figures(["million", "stored"])
    assert (failed.met, good) == (False, GOOD)
    assert "ZeroDivisionError" in failed.measured
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_machine_is_described():
    found = machine()
    assert "cores" in found
    assert "VNNI" in found
    assert "CPython 3" in found or "PyPy" in found
    assert "chromadb 1" in found


def test_a_table_replaces_the_last_one_between_its_marks():
    page = "a\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nb\n"
    once = bench.replaced(page, "bench", "new")
    assert once == "a\n<!-- bench: begin -->\nnew\n<!-- bench: end -->\nb\n"
    assert bench.replaced(once, "bench", "new") == once
    with pytest.raises(ValueError, match="bench-large: begin"):
        bench.replaced(page, "bench-large", "new")


@pytest.mark.parametrize("mark", ["bench", "bench-large"])
def test_the_readme_has_a_place_for_the_table(mark):
    assert "here" in bench.replaced(README.read_text(), mark, "here")


@pytest.mark.parametrize("name", [*bench.SMALL, *bench.LARGE])
def test_each_name_leads_to_a_function(name):
    module, function, _ = bench.OPTIONS.get(name, (name, "main", []))
    assert callable(getattr(import_module(f"benchmarks.{module}"), function))


def test_a_rate_is_of_the_chunks_between_two_numbers():
    moments = [million.Moment(n * 10, n * 2.0, n * 0.1) for n in range(11)]
    assert million._rate(moments, 0, 10) == pytest.approx((5.0, 10.0))
    assert million._rate(moments, 85, 100) == pytest.approx((5.0, 10.0))


@pytest.mark.parametrize("side", ["ours", "by-hand", "aindex"])
async def test_each_side_stores_the_same_events(side, tmp_path):
    if side == "aindex":
        pytest.importorskip("langchain_chroma")
    found = await stored._SIDES[side](str(tmp_path), "instant", 20)
    assert found["cpu"] > 0
    assert found["per_second"] > 0
