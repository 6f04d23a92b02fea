"""`kill -9`: payloads are stored once if `on_actions` has returned. Long form: `benchmarks.kill`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from killing import kill_again_and_again


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("place", "events"), [("files", 600), ("postgres", 400)])
async def test_a_killed_ingest_loses_and_doubles_nothing(tmp_path, request, place, events):
    dsn = request.getfixturevalue("postgres").dsn if place == "postgres" else None
    outcome = await kill_again_and_again(tmp_path, kills=5, events=events, seed=2, dsn=dsn)
    assert outcome.kills == 5
    assert outcome.reported == events * outcome.rounds
    assert outcome.lost == []
    assert outcome.doubled == []
    assert outcome.unclean == []
