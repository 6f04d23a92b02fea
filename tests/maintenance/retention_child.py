"""Deletes what is old beside new events, until it is killed.

python retention_child.py FOLDER
"""

import asyncio
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from forget_child import QuickEmbedder

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.maintenance import retention
from autoplay_rag.stores import ChromaStore

OLD = 400
NEW = 40
DAY = 24 * 3600.0


def make(folder: Path, **options) -> IngestPipeline:
    return IngestPipeline(
        ChromaStore(folder / "chroma"),
        QuickEmbedder(),
        journal=folder / "journal.db",
        batch_window=0.0,
        max_batch_actions=2,
        **options,
    )


async def send(pipeline: IngestPipeline, name: str, numbers, at: float) -> None:
    for number in numbers:
        text = f"{name}word{number}"
        action = SlimAction(text, f"User clicked {text}", "https://a.test", 0, "click", at, at)
        session = f"{name}{number // 5}"
        await pipeline.on_actions(ActionsPayload("p", session, f"{name}id", None, [action], 1, at))


async def main(folder: Path) -> None:
    retention._STEP = 10
    async with make(folder, retention_days=7) as pipeline:
        os.write(1, b"ready\n")
        await send(pipeline, "new", range(NEW), round(time.time(), 3))
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
