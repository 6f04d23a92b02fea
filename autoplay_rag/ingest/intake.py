"""Turns a received payload into a journal entry. Pure, except for the user's rules."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from autoplay_rag._describe import describe
from autoplay_rag.content.chunks import is_empty
from autoplay_rag.content.keys import chunk_id, lane_of, payload_key
from autoplay_rag.content.redaction import RedactionError, pii_rule, redacted, without_addresses
from autoplay_rag.journal.base import Entry
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = ["Intake", "own"]

P = TypeVar("P", ActionsPayload, SummaryPayload, ChatTurn)

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Intake:
    """Applies the user's rules and identifies payloads.

    Args:
        select: Returns whether a payload is wanted.
        redact: Returns the payload as it may be kept. The key is computed before a function of the
            user's, so that a changed rule does not create duplicates, and after the built-in
            redactor, so that nobody can guess from the key what it removed.
        include_email: Whether to keep email addresses.

    Attributes:
        names_first_chunks: Whether entries contain the id of the chunk that would begin with them.
            Only needed if the journal has chunks that were adopted from a store.
    """

    def __init__(
        self,
        select: Callable[[Payload], bool] | None,
        redact: Callable[[Any], Payload] | None,
        *,
        include_email: bool = False,
    ) -> None:
        self._select = select
        self._redact = redact
        self._pii = pii_rule(redact)
        self._include_email = include_email
        self.names_first_chunks = False

    def entry(self, payload: Payload, seq: int) -> Entry:
        """Make the journal entry for a payload.

        A rule that raises never loses a payload silently. If `select` raises, the payload becomes
        a dead letter. If `redact` raises, only the receipt is recorded, because it is unknown
        which parts may be kept.
        """
        try:
            body = _encode(payload)
        except UnicodeEncodeError:  # lone surrogates, in a payload that did not come from `decode`
            payload = type(payload).from_dict(payload.to_dict())
            body = _encode(payload)
        identified = self._without_pii(payload)
        key, lane = payload_key(identified), lane_of(identified, seq)
        first_chunk = chunk_id(identified, key) if self.names_first_chunks else ""
        error = None
        try:
            if is_empty(payload) or (self._select and not self._select(payload)):
                return Entry(seq, key, lane, None, None, outcome="filtered")
        except Exception as failure:  # noqa: BLE001 - the user's own code
            # The message may quote the payload: keep it only if the whole payload is kept.
            name = type(failure).__name__
            _log.error("select failed (%s); the payload becomes a dead letter", name)
            error = f"select failed: {name if self._redact else describe(failure)}"
        try:
            same = self._pii is not None and self._redact is self._pii
            kept = identified if same else redacted(payload, self._redact)
            if not self._include_email:
                kept = without_addresses(kept)
            if kept is not payload:
                payload, body = kept, _encode(kept)
        except Exception as failure:  # noqa: BLE001 - `redact` may return anything
            name = str(failure) if isinstance(failure, RedactionError) else type(failure).__name__
            _log.error("redact failed (%s); the payload was not kept", name)
            return Entry(
                seq,
                key,
                lane,
                None,
                None,
                first_chunk=first_chunk,
                outcome="dead",
                error=f"redact failed: {name}",
            )
        return Entry(
            seq,
            key,
            lane,
            payload,
            body,
            first_chunk,
            "dead" if error else "accepted",
            error,
        )

    def repeated(self, payload: Payload, seq: int) -> Entry:
        """Make the journal entry for a payload whose actions are all known from another source."""
        with suppress(UnicodeEncodeError):
            return Entry(
                seq,
                payload_key(payload),
                lane_of(payload, seq),
                None,
                None,
                outcome="duplicate",
            )
        return self.repeated(type(payload).from_dict(payload.to_dict()), seq)

    def kept(self, payload: Payload) -> Payload:
        """Return a payload as it would be kept, with its addresses.

        Raises:
            RedactionError: If the user's rule fails.
        """
        return redacted(payload, self._redact)

    def _without_pii(self, payload: Payload) -> Payload:
        if self._pii is None:
            return payload
        try:
            return self._pii(payload)
        except Exception:  # noqa: BLE001 - `entry` redacts again, and handles the error
            return payload


def own(payload: Any, cls: type[P]) -> P:
    """Convert a payload to this package's class. Any object with the same fields will do.

    Raises:
        TypeError: If it is not a payload of this kind.
    """
    if isinstance(payload, cls):
        return payload
    if isinstance(payload, Mapping):
        return cls.from_dict(payload)
    of_ours = isinstance(payload, msgspec.Struct)  # is_dataclass() is true for these, too
    if dataclasses.is_dataclass(payload) and not of_ours and not isinstance(payload, type):
        return cls.from_dict(dataclasses.asdict(payload))
    raise TypeError(
        f"expected a {cls.__name__} or an object with its fields, not {type(payload).__name__}"
    )
