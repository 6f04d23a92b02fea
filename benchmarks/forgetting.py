"""How long forgetting a person takes, beside a live ingest into Chroma.

python -m benchmarks.forgetting                     1,000 of 20,000 chunks, about a minute
python -m benchmarks.forgetting --chunks 100000     some minutes
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.stores import ChromaStore
from benchmarks.maintenance import RandomEmbedder, live, measured

_PERSON = 1_000
"""The chunks of the person."""


def payload(number: int, count: int) -> ActionsPayload:
    """A payload of one action. Sessions have ten of them."""
    step = count // _PERSON
    user = "the person" if number // 10 % step == 0 else f"user {number // 100}"
    at = 1.7e9 + number
    text = f"User clicked button {number} of page {number % 997} in the report {number * 7919}"
    click = SlimAction(f"click {number}", text, f"https://app.test/{number % 997}", 0, "click", at)
    return ActionsPayload("acme", f"s{number // 10}", user, None, [click], 1, at)


def size(folder: Path) -> int:
    """The bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def main(count: int, folder: Path) -> None:
    store = ChromaStore(folder / "chroma")
    options = {"journal": folder / "journal.db", "max_batch_actions": 1, "batch_window": 1.0}
    async with IngestPipeline(store, RandomEmbedder(), drain_timeout=300.0, **options) as pipeline:
        began = time.perf_counter()
        for number in range(count):
            task = pipeline.accept(payload(number, count))
            if number % 1000 == 999:
                await task
        await pipeline.drain()
        print(f"{count:,} chunks stored in {time.perf_counter() - began:.0f} s", flush=True)
        print(f"    journal and store: {size(folder) >> 20} MB")
        accepted: list[float] = []
        events = asyncio.create_task(live(pipeline, accepted))
        await asyncio.sleep(5)
        print(f"    accepted within {max(accepted) * 1000:.0f} ms before")
        accepted.clear()
        async with measured("forget: deleted"):
            receipt = await pipeline.forget(user_id="the person")
        print(f"    {receipt}")
        print(f"    accepted within {max(accepted) * 1000:.0f} ms")
        accepted.clear()
        async with measured("erased"):
            while not (receipt := await pipeline.receipt(receipt.number)).erased:
                await asyncio.sleep(0.1)
        print(f"    {receipt}")
        print(f"    accepted within {max(accepted) * 1000:.0f} ms")
        events.cancel()
        await asyncio.wait([events])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_here:
        asyncio.run(main(given.chunks, Path(made_here)))
