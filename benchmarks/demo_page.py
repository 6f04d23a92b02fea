"""The page of a replica, read over HTTP, and what it shows as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

_PREFIX = "autoplay_rag_"


@dataclass(frozen=True)
class Shown:
    """What the page shows of replicas and topic. `/metrics` has the same values.

    Attributes:
        owned: How many partitions each process has, by its number.
        read: The partitions of the topic that each process reads.
        unowned: How many partitions no process has.
        unread: How many partitions of the topic no process reads.
        lag: How many messages of the topic are not taken in.
        counts: How many payloads were received and stored, and how many wait.
    """

    owned: dict[int, int]
    read: dict[int, list[int]]
    unowned: int
    unread: int
    lag: int
    counts: dict[str, int]


class Page:
    """Asks one replica.

    Args:
        url: Its address.
        key: The key of the page.
    """

    def __init__(self, url: str, key: str) -> None:
        self.address = f"{url}/?key={key}"
        self._client = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=10
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def shown(self) -> Shown:
        """Return what it shows now."""
        answer = await self._client.get("/metrics")
        answer.raise_for_status()
        values: dict[str, float] = defaultdict(float)
        owned: dict[int, int] = {}
        read: dict[int, list[int]] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                name = sample.name.removeprefix(_PREFIX)
                values[name] += sample.value
                if name == "replica_partitions":
                    owned[_process(sample.labels["replica"])] = int(sample.value)
                elif name == "topic_read":
                    reader = _process(sample.labels["replica"])
                    read.setdefault(reader, []).append(int(sample.labels["partition"]))
        counts = {"received": "received_total", "stored": "stored_total", "waiting": "pending"}
        return Shown(
            owned,
            read,
            int(values["unowned_partitions"]),
            int(values["topic_unread_partitions"]),
            int(values["topic_lag"]),
            {said: int(values[name]) for said, name in counts.items()},
        )

    async def lines(self) -> list[str]:
        """Return the parts about replicas and topic as a browser gets them, as lines of text."""
        answer = await self._client.get("/", headers={"accept": "text/html"})
        answer.raise_for_status()
        parts = _Parts()
        parts.feed(answer.text)
        return list(parts.lines())


class _Parts(HTMLParser):
    """Collects the paragraphs and tables of the sections about replicas and topic."""

    _SECTIONS = ("h-replicas", "h-topic")

    def __init__(self) -> None:
        super().__init__()
        self._inside = False
        self._skipped = 0
        self._text: list[str] = []
        self._row: list[str] = []
        self._found: list[str | list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "section":
            self._inside = given.get("aria-labelledby") in self._SECTIONS
        elif tag == "span" and (self._skipped or given.get("class") == "label"):
            self._skipped += 1  # the name of the column, for narrow windows
        elif tag in ("h2", "p", "td", "th"):
            self._text = []
        elif tag == "tr":
            self._row = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._skipped:
            self._skipped -= 1
        if not self._inside:
            return
        text = " ".join("".join(self._text).split())
        if tag in ("td", "th"):
            self._row.append(text)
        elif tag in ("h2", "p"):
            self._found.append(text)
        elif tag == "tr":
            self._found.append(self._row)

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._text.append(data)

    def lines(self) -> Iterator[str]:
        """Yield lines; the cells of a table are aligned."""
        widths: dict[tuple[int, int], int] = {}
        for row in self._found:
            if isinstance(row, list):
                for column, cell in enumerate(row):
                    place = (len(row), column)
                    widths[place] = max(widths.get(place, 0), len(cell))
        for one in self._found:
            if isinstance(one, str):
                yield one
            else:
                cells = (f"{cell:<{widths[len(one), n]}}" for n, cell in enumerate(one))
                yield "  " + "  ".join(cells).rstrip()


def _process(name: str) -> int:
    return int(name.rpartition(":")[2])
