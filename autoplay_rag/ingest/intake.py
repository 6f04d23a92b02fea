"""From a payload that was handed over to an entry for the journal. Pure, but for the user's rules."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from autoplay_rag._describe import describe
from autoplay_rag.content.chunks import is_empty
from autoplay_rag.content.keys import lane_of, payload_key
from autoplay_rag.ingest.journal_rows import Entry
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = ["Intake", "own"]

P = TypeVar("P", ActionsPayload, SummaryPayload, ChatTurn)

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Intake:
    """Applies the user's rules and finds out who a payload is.

    Args:
        select: Says whether a payload is wanted at all.
        redact: Gives the payload as it may be kept. Its key is taken before, so that a changed
            rule makes no duplicates.
    """

    def __init__(
        self,
        select: Callable[[Payload], bool] | None,
        redact: Callable[[Payload], Payload] | None,
    ) -> None:
        self._select = select
        self._redact = redact

    def entry(self, payload: Payload, seq: int) -> Entry:
        """What the journal is to do with a payload.

        A rule that raises never loses a payload: if `select` does, the payload becomes a dead
        letter; if `redact` does, only the fact is kept that it came, since nobody can say what
        of it may be kept.
        """
        try:
            body = _encode(payload)
        except UnicodeEncodeError:  # lone surrogates, in a payload that `decode` did not make
            payload = type(payload).from_dict(payload.to_dict())
            body = _encode(payload)
        key, lane = payload_key(payload), lane_of(payload, seq)
        error = None
        try:
            if is_empty(payload) or (self._select and not self._select(payload)):
                return Entry(seq, key, lane, None, None, "filtered")
        except Exception as failure:  # noqa: BLE001 - the user's own code
            # Its message may quote the payload: it is not logged, and kept only beside the whole.
            name = type(failure).__name__
            _log.error("select failed (%s); the payload is in the dead letters", name)
            error = f"select failed: {name if self._redact else describe(failure)}"
        if self._redact:
            try:
                payload = self._redact(payload)
                if not isinstance(payload, ActionsPayload | SummaryPayload | ChatTurn):
                    raise TypeError("it returned no payload")  # noqa: TRY301 - as one that raises
                body = _encode(payload)
            except Exception as failure:  # noqa: BLE001 - the user's own code
                # Its message may quote what it was to remove.
                name = type(failure).__name__
                _log.error("redact failed (%s); the payload was not kept", name)
                return Entry(seq, key, lane, None, None, "dead", f"redact failed: {name}")
        return Entry(seq, key, lane, payload, body.decode(), "dead" if error else "accepted", error)


def own(payload: Any, cls: type[P]) -> P:
    """A payload as this package's class; those of other clients need only the same fields.

    Raises:
        TypeError: If it is no payload of any kind.
    """
    if isinstance(payload, cls):
        return payload
    if isinstance(payload, Mapping):
        return cls.from_dict(payload)
    of_ours = isinstance(payload, msgspec.Struct)  # a dataclass too, but of another kind
    if dataclasses.is_dataclass(payload) and not of_ours and not isinstance(payload, type):
        return cls.from_dict(dataclasses.asdict(payload))
    raise TypeError(
        f"a {cls.__name__} or something with its fields was expected, not {type(payload).__name__}"
    )
