"""What the chip at the top of each page says about the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoplay_rag.serve.history import Connection
from autoplay_rag.serve.serving import Serving

__all__ = ["State", "state_of"]


@dataclass(frozen=True, slots=True)
class State:
    """The state of a pipeline in a word.

    Attributes:
        word: The word.
        tone: "good", "warn" or "bad".
        since: Since when it is connected, in Unix seconds; None if that is not the matter.
        todo: What is wrong and what to do, a sentence each.
        connections: The attached clients.
    """

    word: str
    tone: str
    since: float | None
    todo: Sequence[str]
    connections: Sequence[Connection]


def state_of(serving: Serving) -> State:
    """Return the state as of now."""
    pipeline, connections = serving.pipeline, serving.history.connections
    health = pipeline.health
    if not pipeline.is_running:
        return State("stopped", "bad", None, [_STOPPED], connections)
    if health.state != "ok":
        tone = "bad" if health.state == "failed" else "warn"
        return State(health.state, tone, None, health.reasons, connections)
    away = [one for one in connections if one.state != "connected"]
    if away:
        names = ", ".join(f"{one.product} is {one.state}" for one in away)
        return State("disconnected", "warn", None, [f"{names}. {_AWAY}"], connections)
    if connections:
        since = max(one.since for one in connections)
        return State("connected", "good", since, [], connections)
    return State("running", "good", serving.history.started, [], connections)


_STOPPED = (
    "The pipeline is stopped: nothing is received, stored or found. Start the server again; its log "
    "says why it stopped."
)
_AWAY = "It connects again by itself. If it does not, check the stream's address and token."
