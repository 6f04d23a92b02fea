"""`autoplay-rag serve` is killed at random moments while payloads come in."""

import pytest
from serve_kill import kill_again_and_again

KILLS = 8


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_nothing_that_was_acknowledged_is_lost_or_doubled(tmp_path):
    found = await kill_again_and_again(tmp_path, KILLS)
    assert found.acknowledged > KILLS
    assert found.acknowledged <= found.pushed
    assert (found.lost, found.doubled) == (0, 0)
    assert found.balanced
    assert found.clean
    assert found.exit_code == 0
