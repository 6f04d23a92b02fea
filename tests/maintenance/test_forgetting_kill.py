"""Kill a process at a random moment of a request to forget. The next start completes it."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest
from schema_copies import SchemaCopies

sys.path.insert(0, str(Path(__file__).parent))

from forget_child import COUNT, make, schema_of

from autoplay_rag.errors import ConfigurationError


async def killed_after(folder: Path, seconds: float, dsn: str | None = None) -> str:
    """Run the child, kill it this long after it is ready, and return its last line."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("forget_child.py")),
        str(folder),
        *([dsn] if dsn else []),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    async with asyncio.timeout(60):
        line = (await child.stdout.readline()).decode().strip()
        assert line == "ready"
        await asyncio.sleep(seconds)
        if child.returncode is None:
            child.send_signal(signal.SIGKILL)
        rest = (await child.stdout.read()).decode().split()
        await child.wait()
    return rest[-1] if rest else line


async def completed(folder: Path, dsn: str | None = None) -> None:
    async with make(folder, dsn) as pipeline:
        try:
            receipt = await pipeline.receipt(1)
        except ConfigurationError:  # it was killed before the request was recorded
            receipt = await pipeline.forget(user_id="annid")
        async with asyncio.timeout(60):
            while not (receipt := await pipeline.receipt(receipt.number)).erased:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
        await pipeline.drain(30)
        assert receipt.deleted
        assert len(await pipeline.sessions(user_id="annid", limit=500)) == 0
        assert not [hit for hit in await pipeline.search("annword3", k=50) if "ann" in hit.text]
        chunks = [chunk async for page in pipeline._store.scan() for chunk in page]
        texts = "\n".join(chunk.text for chunk in chunks).split()
        assert not [word for word in texts if word.startswith('"annword')]
        assert sum(chunk.text.count("bobword") for chunk in chunks) >= COUNT
        assert pipeline.ledger.balanced
        assert (await pipeline.verify()).clean
    for path in folder.rglob("*"):  # noqa: ASYNC240 - nothing else runs
        if path.is_file():
            found = path.read_bytes()
            assert b"annword" not in found, path
            assert b"annid" not in found, path
    if dsn is not None:
        with SchemaCopies(dsn, schema_of(folder)) as copies:
            rows = b"".join(copies.take().values())
        assert b"annword" not in rows
        assert b"annid" not in rows
        assert b"bobword" in rows


@pytest.mark.parametrize("seconds", [0.03])
async def test_a_kill_while_deleting(tmp_path, seconds):
    await killed_after(tmp_path, seconds)
    await completed(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("place", "kills"), [("files", 20), ("postgres", 3)])
async def test_kills_at_random(tmp_path, request, place, kills):
    dsn = request.getfixturevalue("postgres").dsn if place == "postgres" else None
    source = random.Random(7)
    for number in range(kills):
        folder = tmp_path / str(number)
        folder.mkdir()
        await killed_after(folder, source.uniform(0.0, 1.5), dsn)
        await completed(folder, dsn)
