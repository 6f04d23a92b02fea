"""Whom a pull source watches."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final, Literal, TypeAlias

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.sources.activity_endpoint import can_be_asked

__all__ = ["Audience", "Users"]

Users: TypeAlias = Collection[str] | Callable[[], Awaitable[Iterable[str]]] | Literal["asked"]
"""Whom to watch: a collection, an async function, or whoever asked the assistant."""

_ASKED_SECONDS: Final = 3600.0
"""How long somebody is watched after they asked the assistant."""


class Audience:
    """The users to watch, and those who asked the assistant.

    Args:
        users: Whom to watch.
        most: The most users.
        complain: Called with a text if not all can be watched.

    Attributes:
        is_function: Whether an async function names the users.
        is_asked: Whether those who asked the assistant are watched.

    Raises:
        ConfigurationError: If `users` is a single text or has a wrong type.
    """

    def __init__(self, users: Users, most: int, complain: Callable[[str], None]) -> None:
        if isinstance(users, str) and users != "asked":
            raise ConfigurationError(
                'users is one text: give a collection of user ids, an async function, or "asked"'
            )
        if not callable(users) and not isinstance(users, Collection):
            raise ConfigurationError(
                'users must be a collection of user ids, an async function, or "asked"'
            )
        self.is_function = callable(users)
        self.is_asked = isinstance(users, str)
        self._users = users
        self._most = most
        self._complain = complain
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, float] = OrderedDict()

    def note_asked(self, user_id: str) -> None:
        """Note that a user asked the assistant. May be called from any thread."""
        with self._lock:
            self._asked[user_id] = time.monotonic()
            self._asked.move_to_end(user_id)
            while len(self._asked) > self._most:
                self._asked.popitem(last=False)

    def forget(self, user_id: str) -> None:
        """Forget that a user asked."""
        with self._lock:
            self._asked.pop(user_id, None)

    async def wanted(self) -> list[str]:
        """Return whom to watch now."""
        found = await self._found()
        wanted = [user for user in found if isinstance(user, str) and can_be_asked(user)]
        if len(wanted) < len(found):
            self._complain(f"{len(found) - len(wanted)} user ids cannot be asked for")
        if len(wanted) > self._most:
            self._complain(
                f"{len(wanted):,} users are to be watched, and max_users is {self._most:,}: the rest "
                "is not watched"
            )
        return wanted[: self._most]

    async def _found(self) -> list[Any]:
        users = self._users
        if isinstance(users, str):
            since = time.monotonic() - _ASKED_SECONDS
            with self._lock:
                return [user for user, at in self._asked.items() if at >= since]
        return list(await users() if callable(users) else users)
