"""A payload is found at any time: while it is queued, while it is stored, and afterwards."""

import pytest

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.stores import MemoryStore


@pytest.mark.parametrize("mode", ["text", "hybrid"])
async def test_a_payload_stored_during_a_search_is_found_once(embedder, mode):
    async with IngestPipeline(MemoryStore(), embedder, batch_window=0.0) as pipeline:
        for number in range(20):
            click = SlimAction("", f"User typed code{number}", "https://a.test/x", 0, "click", 5.0)
            user = f"u{number}"
            await pipeline.on_actions(ActionsPayload("acme", f"s{number}", user, actions=[click]))
            searches = 0
            while pipeline.ledger.pending or searches < 3:
                searches += 1
                hits = await pipeline.search(f"code{number}", user_id=user, mode=mode)
                assert [hit.session_id for hit in hits] == [f"s{number}"]
                sessions = await pipeline.search_sessions(f"code{number}", user_id=user, mode=mode)
                assert [one.session_id for one in sessions] == [f"s{number}"]
