"""The time of a recording, which no single clock decides. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["RecordingClock", "own_time"]

_SESSIONS: Final = 5
"""The latest sessions that are asked: two of them may be wrong."""
_LATEST: Final = 1e11
"""Unix seconds of the year 5138: larger numbers are milliseconds or smaller units."""

_Session = tuple[str, str | None]


def own_time(forwarded_at: float) -> float:
    """A payload's time in Unix seconds, where it came in milliseconds, micro- or nanoseconds.

    Example:
        >>> own_time(1712345678.5), own_time(1712345678500.0)
        (1712345678.5, 1712345678.5)
    """
    while forwarded_at > _LATEST:
        forwarded_at /= 1000
    return forwarded_at


class RecordingClock:
    """Tells the time in a recording by what most of the latest sessions say.

    A recording has no clock but the times in it. One session whose times are years ahead or behind
    would otherwise end all others, or hold the time for the rest of the file.

    Example:
        >>> clock = RecordingClock()
        >>> [clock.tell(("acme", name), at) for name, at in (("s1", 10.0), ("s2", 9e9), ("s3", 20.0))]
        [0.0, 10.0, 20.0]
    """

    def __init__(self) -> None:
        # The last time of each of the latest sessions, the one heard of last at the end.
        self._times: OrderedDict[_Session, float] = OrderedDict()

    def tell(self, session: _Session, at: float) -> float:
        """Take in the time of a payload; gives the time it is now.

        It may go back, where it turns out that the first sessions were wrong.

        Args:
            session: The payload's product and session.
            at: Its `own_time`; 0 where unknown.
        """
        if at > 0:
            self._times[session] = at
            self._times.move_to_end(session)
            if len(self._times) > _SESSIONS:
                self._times.popitem(last=False)
        # Alone, a session says nothing about others. Of an even number the earlier one counts: to
        # give a session late does no harm.
        if len(self._times) < 2:  # noqa: PLR2004 - two agree or do not
            return 0.0
        return sorted(self._times.values())[(len(self._times) - 1) // 2]
