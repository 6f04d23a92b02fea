"""Checks of requests about people and sessions."""

from __future__ import annotations

from autoplay_rag.content.filters import Moment, moment
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.journal.selecting import Asked, Selected

__all__ = ["asked_of", "check_products"]


def asked_of(
    what: str,
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    product_id: str | None = None,
    conversation_id: str | None = None,
    until: Moment | None = None,
) -> Asked:
    """Return a request.

    Args:
        what: Who asks, for the message.
        user_id: The person.
        session_id: The session.
        product_id: The product.
        conversation_id: The chat thread.
        until: Only what happened up to then.

    Raises:
        ConfigurationError: If no id is given, or a value cannot be used.

    Example:
        >>> asked_of("forget()", user_id="ann", until=5).until
        5.0
    """
    ids = (user_id, session_id, product_id, conversation_id)
    if not any(ids) or "" in ids:
        raise ConfigurationError(
            f"{what} needs a user_id, a session_id, a product_id or a conversation_id"
        )
    return Asked(*ids, None if until is None else moment("until", until))


def check_products(asked: Asked, selected: Selected) -> None:
    """Check that the ids belong to one product. Equal ids of two products are different people.

    Raises:
        ConfigurationError: If they do not, and no product is given.
    """
    if asked.product_id is None and len(selected.products) > 1:
        raise ConfigurationError(
            f"the ids given occur in {len(selected.products)} products: give product_id as well"
        )
