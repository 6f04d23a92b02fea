"""Measure the cost of `redact="pii"` per event.

The events are synthetic, with 3 actions each. Events with nothing to remove are measured with new
texts and with texts that were seen before. The baseline is the decoding of the same event.

    python -m benchmarks.redaction
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from benchmarks.table import Figure, show

EVENTS = 2_000
ROUNDS = 5
ACTIONS = 3


def _events(personal: bool) -> list[bytes]:
    """Make events of `ACTIONS` actions. All texts differ."""
    from autoplay_rag import ActionsPayload, SlimAction

    typed = '"ann{0}@acme.test or +49 151 23{0:06}"' if personal else '"report {0} of March 2026"'
    return [
        msgspec.json.encode(
            ActionsPayload(
                "acme",
                f"ps_{number:012x}",
                f"u_{number}",
                actions=[
                    SlimAction(
                        f"Report {number} field",
                        f'User typed {typed.format(number)} into the "Report {number}.{n}" field',
                        "https://app.acme.example/reports/:id",
                        n,
                        "type",
                        1.7e9 + n,
                        1.7e9 + n,
                        f"https://app.acme.example/reports/{number}?page={n}&sort=name",
                    )
                    for n in range(ACTIONS)
                ],
                forwarded_at=1.7e9 + 10,
            )
        )
        for number in range(EVENTS)
    ]


def _microseconds(apply: Callable[[Any], object], events: Sequence[Any]) -> float:
    started = time.process_time()
    for event in events:
        apply(event)
    return (time.process_time() - started) / len(events) * 1e6


def main() -> list[Figure]:
    from autoplay_rag import PiiRedactor
    from autoplay_rag.decoding import decode

    bodies = {personal: _events(personal) for personal in (False, True)}
    payloads = {personal: [decode(body) for body in found] for personal, found in bodies.items()}
    runs: dict[str, list[float]] = {"decode": [], "new": [], "known": [], "personal": []}
    for _ in range(ROUNDS):
        runs["decode"].append(_microseconds(decode, bodies[False]))
        redact = PiiRedactor()
        runs["new"].append(_microseconds(redact, payloads[False]))
        known = payloads[False][:50] * (EVENTS // 50)
        runs["known"].append(_microseconds(redact, known))
        runs["personal"].append(_microseconds(redact, payloads[True]))
    found = {name: statistics.median(times) for name, times in runs.items()}
    return [
        Figure(
            f'redact="pii" for an event of {ACTIONS} actions: texts seen before, new texts, '
            "an address and a phone number in each action",
            f"{found['known']:,.0f}, {found['new']:,.0f}, {found['personal']:,.0f} us",
            f"{found['decode']:,.0f} us to decode it",
            "new texts: at most 300 us",
            found["new"] <= 300,
        )
    ]


if __name__ == "__main__":
    show(main())
