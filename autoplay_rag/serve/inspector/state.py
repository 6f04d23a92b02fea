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
        todo: What is wrong and what to do, a sentence each.
        connections: The attached clients.
    """

    word: str
    tone: str
    todo: Sequence[str]
    connections: Sequence[Connection]


def state_of(serving: Serving) -> State:
    """Return the state as of now."""
    pipeline, connections = serving.pipeline, serving.history.connections
    health = pipeline.health
    if not pipeline.is_running:
        return State("stopped", "bad", [_STOPPED], connections)
    if health.state != "ok":
        failed = health.state == "failed"
        todo = [*health.reasons, _FAILED if failed else _DEGRADED]
        return State(health.state, "bad" if failed else "warn", todo, connections)
    away = [one for one in connections if one.state not in ("connected", "standby")]
    if away:
        names = ", ".join(f"{one.product} is {one.state}" for one in away)
        return State("disconnected", "warn", [f"{names}. {_AWAY}"], connections)
    return State("connected" if connections else "running", "good", [], connections)


_STOPPED = (
    "The pipeline is stopped: nothing is received, stored or found. Start the server again; its log "
    "says why it stopped."
)
_FAILED = (
    "Nothing more is stored; what is received waits in the journal. Repair the cause, and start the "
    "server again."
)
_DEGRADED = "What failed is tried again by itself. Until then the payloads wait in the journal."
_AWAY = "It connects again by itself. If it does not, check the stream's address and token."
