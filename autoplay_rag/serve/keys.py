"""The keys of a server: who holds one may read, ingest or do everything."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from autoplay_rag._secrets import secret_from
from autoplay_rag.errors import ConfigurationError

__all__ = ["ADMIN_VARIABLE", "INGEST_VARIABLE", "READ_VARIABLE", "Keys"]

ADMIN_VARIABLE: Final = "AUTOPLAY_RAG_ADMIN_KEY"
READ_VARIABLE: Final = "AUTOPLAY_RAG_READ_KEY"
INGEST_VARIABLE: Final = "AUTOPLAY_RAG_INGEST_KEY"
_LEAST_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a server. A key that is None does not exist.

    Attributes:
        admin: May do everything.
        read: May search and read everything, the ledger and the metrics included.
        ingest: May send chat turns and payloads, and read nothing.
        local: Another admin key, which `autoplay-rag serve` makes at each start for the commands on
            its machine.

    Raises:
        ConfigurationError: If a key has fewer than 16 characters, or two keys are equal.
    """

    admin: str | None = field(default=None, repr=False)
    read: str | None = field(default=None, repr=False)
    ingest: str | None = field(default=None, repr=False)
    local: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        given = [(name, key) for name, key in self._named() if key is not None]
        for name, key in given:
            if len(key) < _LEAST_CHARACTERS or not key.isascii() or not key.isprintable():
                raise ConfigurationError(
                    f"the {name} key must have at least {_LEAST_CHARACTERS} printable ASCII "
                    "characters, for example those of `openssl rand -hex 32`"
                )
        if len({key for _, key in given}) < len(given):
            raise ConfigurationError("two of the keys are equal: give each role its own key")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the keys from `AUTOPLAY_RAG_ADMIN_KEY`, `_READ_KEY` and `_INGEST_KEY`.

        Each may be in a file that the variable with `_FILE` at the end of its name names.

        Args:
            environ: The variables; by default those of the process.

        Raises:
            ConfigurationError: If a key cannot be read or cannot be used.
        """
        return cls(
            secret_from(ADMIN_VARIABLE, environ),
            secret_from(READ_VARIABLE, environ),
            secret_from(INGEST_VARIABLE, environ),
        )

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return any(key is not None for _, key in self._named())

    def role_of(self, credential: str) -> str | None:
        """Return "admin", "read" or "ingest"; None if it is none of the keys. In constant time."""
        given = credential.encode("utf-8", "replace")
        found = None
        for name, key in self._named():  # no early exit
            same = hmac.compare_digest(given, (key or "").encode())
            if same and key is not None:
                found = name
        return found

    def _named(self) -> tuple[tuple[str, str | None], ...]:
        return (
            ("admin", self.admin),
            ("read", self.read),
            ("ingest", self.ingest),
            ("admin", self.local),
        )
