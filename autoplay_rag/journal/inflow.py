"""A queue outside of the journal, out of which the journal takes payloads in itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol

from autoplay_rag.journal.base import Entry
from autoplay_rag.payloads import Payload

__all__ = ["Enter", "Inflow", "TopicPart", "TopicStatus"]


@dataclass(frozen=True, slots=True)
class TopicPart:
    """One partition of a topic.

    Attributes:
        number: Its number.
        owner: The process that reads it; None if none does.
        offset: The offset of the next message to be taken in; None before the first.
        end: The offset that the next new message gets, as its reader saw it last; None if unknown.
        missed: How many messages were deleted from the topic before they were read.
    """

    number: int
    owner: str | None
    offset: int | None
    end: int | None
    missed: int

    @property
    def lag(self) -> int:
        """How many messages are not taken in, as far as is known."""
        return max(0, (self.end or 0) - (self.offset or 0))


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """A topic, as a group of processes reads it.

    Attributes:
        topic: Its name.
        group: The name of the consumer group.
        parts: Its partitions.
    """

    topic: str
    group: str
    parts: tuple[TopicPart, ...]

    @property
    def lag(self) -> int:
        """How many messages are not taken in."""
        return sum(part.lag for part in self.parts)

    @property
    def missed(self) -> int:
        """How many messages were deleted from the topic before they were read."""
        return sum(part.missed for part in self.parts)

    @property
    def unread(self) -> tuple[int, ...]:
        """The partitions that no process reads."""
        return tuple(part.number for part in self.parts if part.owner is None)

    def read_by(self, alive: Collection[str]) -> TopicStatus:
        """Return it without owners that have ended: one that was killed releases nothing.

        Args:
            alive: The names of the processes that share the journal now.

        Example:
            >>> status = TopicStatus("events", "rag", (TopicPart(0, "host:1", 7, 9, 0),))
            >>> status.read_by({"host:2"}).unread
            (0,)
        """
        parts = (
            part if part.owner is None or part.owner in alive else replace(part, owner=None)
            for part in self.parts
        )
        return replace(self, parts=tuple(parts))


class Enter(Protocol):
    """Makes the entries of what an inflow brings."""

    def payload(self, payload: Payload) -> list[Entry]:
        """Return the entries of a payload. A payload of several people becomes several."""

    def broken(self, key: str, why: str) -> Entry:
        """Return the entry of something that is no payload.

        Args:
            key: What identifies it: 32 hexadecimal digits.
            why: What is wrong. It quotes nothing of it.
        """


class Inflow(ABC):
    """What brings payloads into a journal by itself."""

    @property
    @abstractmethod
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""

    @abstractmethod
    async def run(self, enter: Enter, on_taken: Callable[[], None]) -> None:
        """Take payloads in until `stop` is called.

        Args:
            enter: Makes the entries.
            on_taken: Called when something was taken in.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let `run` end soon. What was begun is finished, and others may go on."""

    @abstractmethod
    async def status(self) -> TopicStatus:
        """Return how far it is, over all processes.

        Raises:
            JournalError: If the database does not answer.
        """
