"""Kill a process at a random moment while it deletes what is old. The next start completes it."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from aging import contents
from retention_child import DAY, NEW, OLD, make, send


async def killed_after(folder: Path, seconds: float) -> None:
    """Run the child, and kill it this long after it is ready."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("retention_child.py")),
        str(folder),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    async with asyncio.timeout(60):
        assert await child.stdout.readline() == b"ready\n"
        await asyncio.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        await child.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_kills(tmp_path):
    source = random.Random(13)
    left = []
    for number in range(4):
        folder = tmp_path / str(number)
        old = round(time.time() - 10 * DAY, 3)  # Chroma rounds a 17th digit
        async with make(folder) as pipeline:
            await asyncio.gather(
                *(send(pipeline, "old", range(start, OLD, 8), old) for start in range(8))
            )
            await pipeline.drain(60)
            assert len(await pipeline.sessions(limit=200)) == OLD // 5
        await killed_after(folder, source.choice((0.0, 0.02, 0.1, 0.3)))
        left.append(contents(folder / "journal.db").count("User clicked oldword"))
        async with make(folder, retention_days=7) as pipeline:
            await send(pipeline, "new", range(NEW), round(time.time(), 3))
            await pipeline._run.retention.wait()
            await pipeline.drain(60)
            texts = [c.text async for page in pipeline._store.scan() for c in page]
            words = "\n".join(texts).split()
            assert not [word for word in words if "oldword" in word]
            assert pipeline.ledger.stored >= OLD + NEW
            assert pipeline.ledger.balanced
            assert (await pipeline.verify()).clean
            names = {one.session_id for one in await pipeline.sessions(limit=200)}
            assert names == {f"new{n}" for n in range(NEW // 5)}
        assert "oldword" not in contents(folder / "journal.db")
    assert any(left), "no kill came before the end of the deletion"
