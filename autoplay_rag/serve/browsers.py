"""Browsers that signed in: a random id in the cookie, and the key in memory."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from autoplay_rag.serve.auth import Authenticator

__all__ = ["Browsers", "cookie_name"]

_MOST: Final = 1_000
_SECONDS: Final = 12 * 3600.0


def cookie_name(host: str) -> str:
    """Return the name of the cookie with a browser's id.

    A browser sends a cookie only from the page itself (SameSite), but to every port of the host. So
    it does not hold the key, which another server on localhost would get, and its name has the
    port: two servers on one machine do not sign each other's browsers out.

    Args:
        host: The header `Host` of the request.

    Example:
        >>> cookie_name("127.0.0.1:8760")
        'autoplay_rag_session_8760'
    """
    port = host.rpartition(":")[2]
    return f"autoplay_rag_session_{port}" if port.isdigit() else "autoplay_rag_session"


class Browsers:
    """Browsers that signed in. They are forgotten after twelve hours, and when the server stops.

    Args:
        authenticator: Recognises credentials.
        clock: Returns seconds.
    """

    def __init__(
        self, authenticator: Authenticator, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._authenticator = authenticator
        self._clock = clock
        # The credential and the end of each, oldest first.
        self._credentials: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def sign_in(self, credential: str) -> str | None:
        """Return a new id for a key or token that may read; None for another."""
        principal = self._authenticator.identify(credential)
        if principal is None or not principal.allows("own"):
            return None
        while len(self._credentials) >= _MOST:
            self._credentials.popitem(last=False)
        made = secrets.token_urlsafe(32)
        self._credentials[made] = (credential, self._clock() + _SECONDS)
        return made

    def credential(self, id: str) -> str | None:
        """Return the key or token of a browser; None if it is not signed in any more."""
        credential, end = self._credentials.get(id, ("", 0.0))
        if credential and self._clock() < end:
            return credential
        self.sign_out(id)
        return None

    def sign_out(self, id: str) -> None:
        """Forget a browser."""
        self._credentials.pop(id, None)
