"""Names the sessions of many devices, where an analytics tool names none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from autoplay_rag.sources.analytics import NameSession
from autoplay_rag.sources.sessions import LONGEST, SessionCutter, cut_name

__all__ = ["DeviceSessions", "Known", "names"]

_MOST_DEVICES: Final = 10_000


class Known(NamedTuple):
    """A session that a journal has.

    Attributes:
        name: Its id.
        first: Unix seconds of its first action.
        last: Unix seconds of its last action.
    """

    name: str
    first: float
    last: float


class _Device:
    """The sessions of one device, and the span of time for which they are complete."""

    __slots__ = ("cutter", "known_from", "known_until")

    def __init__(self, product_id: str, actor: str) -> None:
        self.cutter = SessionCutter(product_id, actor)
        self.known_from = self.known_until = 0.0


class DeviceSessions:
    """Gives events their sessions. Remembers the sessions of the devices that were seen last.

    A session is named after its first event. An event that comes again falls into the session that
    it made, and gets the same name. After a restart, `remember` has to be told what a journal holds.

    Args:
        most: The most devices remembered.

    Example:
        >>> sessions = DeviceSessions()
        >>> first = sessions.name("acme", "device d1", 1712345678.5)
        >>> sessions.name("acme", "device d1", 1712345778.5) == first
        True
        >>> sessions.name("acme", "device d2", 1712345778.5) == first
        False
    """

    def __init__(self, *, most: int = _MOST_DEVICES) -> None:
        self._most = most
        self._devices: OrderedDict[tuple[str, str], _Device] = OrderedDict()

    def __len__(self) -> int:
        return len(self._devices)

    def name(self, product_id: str, actor: str, at: float) -> str:
        """Return the id of the session of an event.

        Args:
            product_id: The product.
            actor: The device, or the person if there is no device.
            at: Unix seconds; 0 if unknown. Such events of a device have a session of their own:
                which session is the latest may be another one when they come again.
        """
        if not at:
            return cut_name(product_id, actor, at)
        return self._device(product_id, actor).cutter.session_at(at)

    def lacks(self, product_id: str, actor: str, at: float) -> bool:
        """Whether a journal may have sessions near an event that were not remembered yet."""
        if not at:
            return False
        device = self._devices.get((product_id, actor))
        return device is None or not device.known_from <= at <= device.known_until

    def remember(self, product_id: str, actor: str, at: float, known: Iterable[Known]) -> None:
        """Add the sessions of a journal around an event.

        Args:
            product_id: The product.
            actor: The device.
            at: Unix seconds of the event.
            known: All sessions of the device with a name of `cut_names`.
        """
        device = self._device(product_id, actor)
        for session in known:
            device.cutter.remember(*session)
        # A session has at most a day, so those around any moment of the next day are among these.
        since, until = at, at + LONGEST
        if since <= device.known_until and until >= device.known_from:
            since = min(since, device.known_from)
            until = max(until, device.known_until)
        device.known_from, device.known_until = since, until

    def _device(self, product_id: str, actor: str) -> _Device:
        key = (product_id, actor)
        device = self._devices.get(key)
        if device is None:
            device = self._devices[key] = _Device(product_id, actor)
            if len(self._devices) > self._most:
                self._devices.popitem(last=False)
        else:
            self._devices.move_to_end(key)
        return device


def names(sessions: DeviceSessions | None) -> NameSession:
    """What names the sessions of a body; None names them for this body alone."""
    return (DeviceSessions() if sessions is None else sessions).name
