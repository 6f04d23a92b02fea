"""Who a session belongs to. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload

__all__ = ["NOBODY", "People", "changes_hands", "parts_by_person", "people_of"]


def changes_hands(before: str | None, now: str | None) -> bool:
    """Whether a session of one person now belongs to another; their data must not mix."""
    return now is not None and before not in (None, now)


class People(NamedTuple):
    """Who something belongs to, as far as known.

    Attributes:
        user_id: The person.
        conversation_id: Their chat thread.
        email: Their address; None unless addresses are kept.
    """

    user_id: str | None = None
    conversation_id: str | None = None
    email: str | None = None

    def after(self, payload: Payload) -> People:
        """Who the session belongs to once this payload of it has arrived.

        A session that changes hands starts anew: the chat thread of the last person does not
        pass to the next.

        Example:
            >>> from autoplay_rag.payloads import SummaryPayload
            >>> ann = People().after(ActionsPayload("acme", "s1", "ann"))
            >>> ann.after(SummaryPayload("acme", "s1", "Exported a report."))
            People(user_id='ann', conversation_id=None, email=None)
        """
        named = people_of(payload)
        if changes_hands(self.user_id, named.user_id):
            return named
        return named.or_else(self)

    def or_else(self, other: People) -> People:
        """These people, and those of `other` where nobody is known here.

        Example:
            >>> People("ann").or_else(People("bob", "thread-1"))
            People(user_id='ann', conversation_id='thread-1', email=None)
        """
        return People(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


NOBODY = People()
"""No known person and no known chat thread."""


def people_of(payload: Payload) -> People:
    """Person and chat thread, where a payload or one of its actions names them.

    Example:
        >>> from autoplay_rag.payloads import SlimAction
        >>> people_of(ActionsPayload("acme", "s1", actions=[SlimAction(user_id="u1")]))
        People(user_id='u1', conversation_id=None, email=None)
    """
    if isinstance(payload, SummaryPayload):
        return NOBODY
    user_id, conversation_id, email = payload.user_id, payload.conversation_id, None
    if isinstance(payload, ActionsPayload):
        email = payload.email
        for action in payload.actions:
            user_id = user_id or action.user_id
            conversation_id = conversation_id or action.conversation_id
            email = email or action.email
    return People(user_id or None, conversation_id or None, email or None)


def parts_by_person(payload: Payload) -> list[Payload]:
    """Divide a payload whose actions name several people, so that each part is of one person.

    An action that names nobody belongs to the person of the action before it. Address and chat
    thread stay with the person of the payload.

    Example:
        >>> from autoplay_rag.payloads import SlimAction
        >>> actions = [SlimAction("Pay", user_id="ann"), SlimAction("Log in", user_id="bob")]
        >>> [part.user_id for part in parts_by_person(ActionsPayload("acme", "s1", actions=actions))]
        ['ann', 'bob']
    """
    if not isinstance(payload, ActionsPayload):
        return [payload]
    if len({action.user_id for action in payload.actions if action.user_id}) < _SEVERAL:
        return [payload]
    parts: list[Payload] = []
    run: list[SlimAction] = []
    person = payload.user_id
    for action in payload.actions:
        if run and action.user_id and action.user_id != person:
            parts.append(_part(payload, run, person))
            run = []
        person = action.user_id or person
        run.append(action)
    return [*parts, _part(payload, run, person)]


_SEVERAL = 2


def _part(payload: ActionsPayload, actions: list[SlimAction], person: str | None) -> Payload:
    own = person == payload.user_id
    return msgspec.structs.replace(
        payload,
        user_id=person,
        email=payload.email if own else None,
        conversation_id=payload.conversation_id if own else None,
        actions=actions,
        count=len(actions),
    )
