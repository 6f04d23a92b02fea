"""`kill -9` while people are forgotten, identities come late, summaries retire actions and the model
changes. After the next start, nothing is wrong.

More kills: python tests/maintenance/test_everything_kill.py 100
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from everything_child import opened


@dataclass
class Facts:
    """What the child has said."""

    events: dict[str, tuple[str, str]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    """Sessions whose person an event has named. Before that, nobody knows whose they are."""
    with_summary: set[str] = field(default_factory=set)
    forgetting: set[str] = field(default_factory=set)
    before_forgotten: dict[str, set[str]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    done: set[str] = field(default_factory=set)

    def add(self, line: str) -> None:
        kind, *rest = line.split()
        self.kinds[kind] += 1
        if kind == "event":
            word, session, user, named, outcome = rest
            if outcome == "accepted":
                self.events[word] = (session, user)
                if named == "named":
                    self.known.add(session)
        elif kind == "summary":
            self.with_summary.add(rest[0])
        elif kind == "forgetting":
            user = rest[0]
            self.forgetting.add(user)
            own = {
                word
                for word, (session, owner) in self.events.items()
                if owner == user and session in self.known
            }
            self.before_forgotten.setdefault(user, own)


async def killed_after(
    folder: Path, turn: int, seconds: float, facts: Facts, dsn: str | None
) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("everything_child.py")),
        str(folder),
        str(turn),
        *([dsn] if dsn else []),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    lines: list[str] = []

    async def listen() -> None:
        async for line in child.stdout:
            lines.append(line.decode().strip())
            if lines[-1] == "ready":
                ready.set()
        ready.set()

    ready = asyncio.Event()
    listening = asyncio.create_task(listen())
    async with asyncio.timeout(60):
        await ready.wait()
        await asyncio.sleep(seconds)
        assert child.returncode is None, lines[-3:]
        child.send_signal(signal.SIGKILL)
        await child.wait()
        await listening
    for line in lines:
        facts.add(line)
    facts.done = {line.split()[1] for line in lines if line.startswith("forgotten")}


async def check(folder: Path, facts: Facts, dsn: str | None) -> None:
    pipeline, _ = await opened(folder, dsn)
    try:
        async with asyncio.timeout(90):
            await pipeline.drain()
            report = await pipeline.verify()
            assert report.clean, report
            assert pipeline.ledger.balanced
            assert pipeline.ledger.dead == 0
            chunks = [chunk async for page in pipeline._store.scan() for chunk in page]
            found = Counter(word for c in chunks for word in re.findall(r"w\d+x\d+x", c.text))
            assert not {word for word, count in found.items() if count > 1}
            for word, (session, user) in facts.events.items():
                if user in facts.forgetting:
                    continue
                if session not in facts.with_summary:
                    assert found[word] == 1, word
                elif not found[word]:
                    whole = await pipeline.session(session)
                    assert whole is not None
                    assert word in whole.text
            for user in facts.done:
                assert not [word for word in facts.before_forgotten[user] if found[word]], user
            for chunk in chunks:
                # Every session has one person, who is known once an event named them.
                users = {
                    facts.events[w][1]
                    for w in re.findall(r"w\d+x\d+x", chunk.text)
                    if w in facts.events
                }
                assert chunk.metadata.get("user_id") in {*users, None} or not users
            await pipeline.drain()
    finally:
        await pipeline.aclose()


async def kill_and_check(
    folder: Path, kills: int, seed: int, dsn: str | None = None
) -> Counter[str]:
    source, kinds = random.Random(seed), Counter[str]()
    for turn in range(kills):
        facts = Facts()
        await killed_after(folder, turn, source.uniform(0.0, 2.5), facts, dsn)
        await check(folder, facts, dsn)
        kinds += facts.kinds
    return kinds


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("place", "kills"), [("files", 8), ("postgres", 5)])
async def test_kills_at_random(tmp_path, request, place, kills):
    dsn = request.getfixturevalue("postgres").dsn if place == "postgres" else None
    kinds = await kill_and_check(tmp_path, kills, seed=5, dsn=dsn)
    assert min(kinds[kind] for kind in ("event", "summary", "forgetting", "model")) > 3


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_here:
        print(asyncio.run(kill_and_check(Path(made_here), int(sys.argv[1]), seed=1)))  # noqa: T201
