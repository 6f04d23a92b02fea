"""The user's `redact` rule, applied in one place. Pure, but for that rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from autoplay_rag.content.pii import PiiRedactor
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SummaryPayload

__all__ = [
    "Redact",
    "RedactionError",
    "pii_rule",
    "redacted",
    "redaction_rule",
    "without_addresses",
]

Redact: TypeAlias = Literal["pii"] | Callable[[Any], Payload]
"""One rule: "pii" for `PiiRedactor()`, or a function that returns a payload as it may be kept."""


class RedactionError(Exception):
    """`redact` failed.

    The message holds only the name of the error: the error's own text may quote what `redact`
    was to remove.
    """


def redaction_rule(redact: Redact | Sequence[Redact] | None) -> Callable[[Any], Payload] | None:
    """Make one function from the `redact` argument.

    Args:
        redact: "pii", a function, a sequence of both to apply in order, or None.

    Returns:
        The function; None if there is nothing to do.

    Raises:
        ConfigurationError: If it is something else.
        MissingExtraError: If "pii" is given and the extra `pii` is not installed.

    Example:
        >>> redaction_rule("emails")
        Traceback (most recent call last):
        autoplay_rag.errors.ConfigurationError: redact must be "pii", a function, or a sequence of them, not 'emails'
    """
    made: list[Callable[[Any], Payload]] = []
    for rule in _rules(redact):
        if rule == "pii":
            made.append(PiiRedactor())
        elif callable(rule) and not isinstance(rule, type):
            made.append(rule)
        else:
            raise ConfigurationError(
                f'redact must be "pii", a function, or a sequence of them, not {rule!r}'
            )
    if len(made) <= 1:
        return made[0] if made else None

    def apply(payload: Any) -> Payload:
        for one in made:
            payload = _checked(one(payload))
        found: Payload = payload
        return found

    apply.pii = next((one for one in made if isinstance(one, PiiRedactor)), None)  # type: ignore[attr-defined]
    return apply


def pii_rule(redact: Callable[[Any], Payload] | None) -> PiiRedactor | None:
    """Return the built-in redactor in a function of `redaction_rule`; None if there is none.

    Identity (key, lane) is taken after this redactor: a hash of what it removes could be guessed.
    A function of the user's may change its result, so identity is taken before it.
    """
    if isinstance(redact, PiiRedactor):
        return redact
    return getattr(redact, "pii", None)


def _rules(redact: Redact | Sequence[Redact] | None) -> Sequence[Any]:
    if redact is None:
        return ()
    if isinstance(redact, Sequence) and not isinstance(redact, str | bytes):
        return redact
    return (redact,)


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
        return _checked(redact(payload))
    except Exception as error:  # noqa: BLE001 - the user's own code
        raise RedactionError(type(error).__name__) from None


def _checked(found: Any) -> Payload:
    if not isinstance(found, ActionsPayload | SummaryPayload | ChatTurn):
        raise TypeError("redact() did not return a payload")
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
