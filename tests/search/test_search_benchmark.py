"""Short runs of `benchmarks/search.py` and `benchmarks/findable.py`."""

from pathlib import Path

from benchmarks import findable
from benchmarks.search import CONDITIONS, measure, payloads


async def test_search_over_few_chunks(tmp_path: Path) -> None:
    said: list[str] = []
    found = await measure(tmp_path / "built", 60, 3, text_only=True, say=said.append)
    assert found.keys() == CONDITIONS.keys()
    assert all(timing.p50 > 0 for timings in found.values() for timing in timings)
    assert any("full text" in line for line in said)
    assert (tmp_path / "built" / "done").exists()


def test_the_made_up_payloads() -> None:
    lists = list(payloads(200))
    assert sum(map(len, lists)) == 200
    for some in lists:
        assert len({one.session_id for one in some}) == len(some)


async def test_payloads_are_found_while_the_embedder_is_slow() -> None:
    times = await findable.measure(0.2)
    assert len(times.found) == len(times.accepted) == times.unembedded > 0
