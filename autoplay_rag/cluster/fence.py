"""What a transaction checks before it writes for partitions: that they have not changed hands.

A process that was paused may go on with work that another one has taken over. Each take-over
increases the epoch of the partition. A transaction that records its work reads the rows of
its partitions with the epochs that it knows, `FOR SHARE`. A row that is missing was taken over, so
the transaction fails. A row that was found cannot be taken over before the transaction ends.
`FOR KEY SHARE` would not hold up a change of the epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autoplay_rag.errors import FencedError

__all__ = ["Fence"]


@dataclass(frozen=True, slots=True)
class Fence:
    """The partitions for which a transaction writes.

    Attributes:
        epochs: The epoch of each partition, as this process knows it.

    Example:
        >>> fence = Fence({3: 7, 5: 1})
        >>> fence.check([(3,), (5,)])
        >>> fence.check([(3,)])
        Traceback (most recent call last):
            ...
        autoplay_rag.errors.FencedError: another process has taken over the partitions 5; nothing ...
    """

    epochs: Mapping[int, int]

    def statement(self, schema: str) -> str:
        """Return the statement that finds and locks the partitions.

        Args:
            schema: The quoted name of the schema.
        """
        return (
            f"SELECT number FROM {schema}.partition WHERE (number, epoch) IN "
            # In the order of numbers, so that two transactions cannot wait for each other.
            "(SELECT * FROM unnest(%s::int[], %s::bigint[])) ORDER BY number FOR SHARE"
        )

    @property
    def parameters(self) -> list[list[int]]:
        """The parameters of the statement."""
        return [[*self.epochs.keys()], [*self.epochs.values()]]

    def check(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Compare the rows that the statement found.

        Raises:
            FencedError: If a partition is missing. The transaction must be rolled back.
        """
        if lost := self.epochs.keys() - {number for (number, *_) in rows}:
            raise FencedError(
                "another process has taken over the partitions "
                f"{', '.join(map(str, sorted(lost)))}; nothing was written for them here",
                partitions=lost,
            )
