"""The analytics tools: how their events are read, and how their requests prove who sends them. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Final

from autoplay_rag.errors import SignatureError
from autoplay_rag.sources.amplitude import amplitude_events
from autoplay_rag.sources.analytics import Events
from autoplay_rag.sources.posthog import posthog_events
from autoplay_rag.sources.segment import segment_events
from autoplay_rag.sources.specs import AnalyticsTool

__all__ = ["READERS", "SECRET_HEADER", "SIGNATURE_HEADER", "check_sender", "segment_signature"]

READERS: Final[Mapping[AnalyticsTool, Callable[..., Events]]] = {
    "posthog": posthog_events,
    "amplitude": amplitude_events,
    "segment": segment_events,
}
"""By tool, what reads the events of a body."""

SECRET_HEADER: Final = "x-webhook-secret"  # noqa: S105 - the name of a header
"""PostHog, Amplitude, Segment and RudderStack send headers that their user sets."""
SIGNATURE_HEADER: Final = "x-signature"
"""Segment's own: the body's HMAC-SHA1 with the shared secret of the destination, in hex. See
https://www.twilio.com/docs/segment/connections/destinations/catalog/actions-webhook."""


def segment_signature(body: bytes, secret: str) -> str:
    """Sign a body as Segment does.

    Example:
        >>> segment_signature(b"{}", "whsec")
        '98d48e2eaaccc42d78f8d0ab16dccd1a00387f07'
    """
    return hmac.digest(secret.encode(), body, "sha1").hex()


def check_sender(tool: AnalyticsTool, body: bytes, headers: Mapping[str, str], secret: str) -> None:
    """Check that who sent a request knows the secret. Compares in constant time.

    Args:
        tool: The tool of the address.
        body: The raw body, byte for byte.
        headers: The request's headers, with names in lower case.
        secret: The secret.

    Raises:
        SignatureError: If neither the secret nor, from Segment, a signature proves it.
    """
    given = headers.get(SECRET_HEADER)
    if given is not None and _same(given, secret):
        return
    signature = headers.get(SIGNATURE_HEADER) if tool == "segment" else None
    if signature is not None:
        if _same(signature.strip().lower(), segment_signature(body, secret)):
            return
        raise SignatureError(
            "X-Signature does not fit the body. Segment signs only the first event of a batch: turn "
            "batching off, or send the secret in the header X-Webhook-Secret"
        )
    if given is not None:
        raise SignatureError("X-Webhook-Secret is not the secret of the server")
    raise SignatureError("X-Webhook-Secret is missing")


def _same(given: str, wanted: str) -> bool:
    # Servers decode headers as Latin-1, whatever the bytes were.
    return hmac.compare_digest(given.encode("latin-1", "replace"), wanted.encode())
