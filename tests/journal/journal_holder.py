"""Open a journal, report it, and hold it until the process is killed or its input ends."""

import asyncio
import sys
from pathlib import Path

from autoplay_rag.errors import JournalLockedError
from autoplay_rag.journal.sqlite import SqliteJournal


async def main(path: Path) -> None:
    journal = SqliteJournal(
        path, on_entry=lambda entry, outcome: None, on_returned=lambda back: None
    )
    try:
        await journal.open()
    except JournalLockedError as error:
        print(f"locked: {error}", flush=True)  # noqa: T201 - how it reports
        return
    print("open", flush=True)  # noqa: T201 - how it reports
    await asyncio.to_thread(sys.stdin.read)
    await journal.close()


asyncio.run(main(Path(sys.argv[1])))
