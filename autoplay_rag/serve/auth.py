"""Who makes a request, and what that allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from autoplay_rag.serve.keys import Keys
from autoplay_rag.serve.tokens import Bound, SigningKeys, verify_token

__all__ = ["Authenticator", "Need", "Principal"]

Need: TypeAlias = Literal["open", "own", "read", "ingest", "admin"]
"""What a route needs: nothing; a read key or a bound token, which sees its own data; a read key;
an ingest key; an admin key. An admin key allows everything."""

_ALLOWED: Final[dict[str, frozenset[Need]]] = {
    "admin": frozenset(("open", "own", "read", "ingest", "admin")),
    "read": frozenset(("open", "own", "read")),
    "ingest": frozenset(("open", "ingest")),
    "token": frozenset(("open", "own")),
}
_LONGEST_CREDENTIAL: Final = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request.

    Attributes:
        role: "admin", "read", "ingest" or "token".
        bound: What the token is bound to; None for a key.
    """

    role: str
    bound: Bound | None = None

    @property
    def name(self) -> str:
        """A name for the audit log and for rates. Not a secret."""
        if self.bound is None:
            return self.role
        return f"token {self.bound.token_id}"

    def allows(self, need: Need) -> bool:
        """Whether it may use a route."""
        return need in _ALLOWED[self.role]


class Authenticator:
    """Recognises keys and tokens.

    Args:
        keys: The keys.
        signing: The keys that sign tokens; None if no token is valid.
    """

    def __init__(self, keys: Keys, signing: SigningKeys | None) -> None:
        self._keys = keys
        self._signing = signing

    def identify(self, credential: str) -> Principal | None:
        """Return who has a credential; None if it is not valid."""
        if len(credential) > _LONGEST_CREDENTIAL:
            return None
        if (role := self._keys.role_of(credential)) is not None:
            return Principal(role)
        if self._signing is None:
            return None
        bound = verify_token(credential, self._signing)
        return None if bound is None else Principal("token", bound)
