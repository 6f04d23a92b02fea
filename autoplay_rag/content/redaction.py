"""The user's `redact` rule, applied in one place. Pure, but for that rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = ["RedactionError", "redacted", "without_addresses"]


class RedactionError(Exception):
    """`redact` failed.

    The message holds only the name of the error: the error's own text may quote what `redact`
    was to remove.
    """


def redacted(payload: Payload, redact: Callable[[Any], Payload] | None) -> Payload:
    """The payload as it may be kept.

    Args:
        payload: The payload as it arrived.
        redact: The user's rule; None keeps the payload as it is.

    Raises:
        RedactionError: If the rule raised, or returned something that is not a payload.
    """
    if redact is None:
        return payload
    try:
        found = redact(payload)
        if not isinstance(found, ActionsPayload | SummaryPayload | ChatTurn):
            raise TypeError("redact() did not return a payload")  # noqa: TRY301 - as any other failure
    except Exception as error:  # noqa: BLE001 - the user's own code
        raise RedactionError(type(error).__name__) from None
    return found


def without_addresses(payload: Payload) -> Payload:
    """The payload without e-mail addresses; the same object where it has none."""
    if not isinstance(payload, ActionsPayload):
        return payload
    actions = payload.actions
    if any(action.email for action in actions):
        actions = [
            msgspec.structs.replace(action, email=None) if action.email else action
            for action in actions
        ]
    elif not payload.email:
        return payload
    return msgspec.structs.replace(payload, email=None, actions=actions)
