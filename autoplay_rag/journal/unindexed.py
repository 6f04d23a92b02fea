"""Makes entries for the full-text index of payloads that were accepted without one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from autoplay_rag.content.passages import Passage, passage_of, passage_of_text
from autoplay_rag.journal.base import IndexEntry, Unindexed
from autoplay_rag.journal.bodies import decoded, unpack

__all__ = ["entries_of"]

_log = logging.getLogger(__name__)


def entries_of(page: Sequence[Unindexed]) -> list[IndexEntry]:
    """Return the entries of payloads, without those of which no text is left."""
    found = []
    for one in page:
        try:
            if (entry := _entry(one)) is not None:
                found.append(entry)
        except Exception as error:  # noqa: BLE001 - one payload must not stop the others
            _log.error("a payload is not found by its words: %s", type(error).__name__)
        time.sleep(0)  # releases the GIL for the event loop
    return found


def _entry(one: Unindexed) -> IndexEntry | None:
    payload = decoded(unpack(one.body))
    if payload is not None:
        return IndexEntry(
            one.seq, one.lane, payload.product_id, payload.session_id, passage_of(payload)
        )
    if one.chunk is None:
        return None
    text, product, session, user, conversation, started, ended, actions = one.chunk
    passage: Passage = passage_of_text(
        text,
        started=started,
        ended=ended,
        actions=actions,
        user_id=user,
        conversation_id=conversation,
    )
    return IndexEntry(one.seq, one.lane, product, session, passage)
