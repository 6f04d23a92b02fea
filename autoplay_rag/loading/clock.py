"""The current time within a recording, estimated from several sessions. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["RecordingClock"]

_SESSIONS: Final = 5
"""The number of latest sessions considered. Up to two of them may be wrong."""

_Session = tuple[str, str | None]


class RecordingClock:
    """Estimates the time in a recording as the median of the latest sessions.

    A recording has no clock except the times in it. Otherwise one session with times years
    ahead or behind could end all other sessions, or stop the clock for the rest of the file.

    Example:
        >>> clock = RecordingClock()
        >>> [clock.tell(("acme", name), at) for name, at in (("s1", 10.0), ("s2", 9e9), ("s3", 20.0))]
        [0.0, 10.0, 20.0]
    """

    def __init__(self) -> None:
        # The last time of each of the latest sessions, the most recently active one at the end.
        self._times: OrderedDict[_Session, float] = OrderedDict()

    def tell(self, session: _Session, at: float) -> float:
        """Add the time of a payload and return the current time.

        The result may go back if the first sessions turn out to be wrong.

        Args:
            session: The payload's product and session.
            at: Its `own_time`; 0 if unknown.
        """
        if at > 0:
            self._times[session] = at
            self._times.move_to_end(session)
            if len(self._times) > _SESSIONS:
                self._times.popitem(last=False)
        # One session says nothing about the others. For an even number, take the lower median:
        # emitting a session late does no harm.
        if len(self._times) < 2:  # noqa: PLR2004 - two agree or do not
            return 0.0
        return sorted(self._times.values())[(len(self._times) - 1) // 2]
