"""The ASGI application of a relay: pushes of the connector and of analytics tools, chat turns, health."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from autoplay_rag.errors import MissingExtraError
from autoplay_rag.ingest.events import EventIntake
from autoplay_rag.relay.relay import Relay
from autoplay_rag.serve.audit import AuditSink, log_line
from autoplay_rag.serve.keys import Keys
from autoplay_rag.serve.lifespan import started
from autoplay_rag.serve.settings import checked_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["create_relay_app"]


def create_relay_app(
    relay: Relay,
    *,
    keys: Keys | None = None,
    webhook_secret: str | None = None,
    analytics_secrets: Mapping[str, str] | None = None,
    hosts: Collection[str] = (),
    max_body_bytes: int = 2**20,
    rate: float = 100.0,
    audit: AuditSink = log_line,
) -> FastAPI:
    """Make the ASGI application with the HTTP interface of a relay.

    It has `POST /v1/webhooks/{product_id}`, `POST /v1/webhooks/{product_id}/{tool}`, `POST /v1/turns`,
    `/healthz`, `/readyz` and `/metrics`, as `create_app` has them. A request that brings payloads is
    answered once the topic has them, or with 503.

    Serve it on the relay's event loop. Served alone, it starts the relay and closes it at shutdown,
    unless the relay was running already.

    Args:
        relay: Takes the payloads.
        keys: As for `create_app`.
        webhook_secret: As for `create_app`.
        analytics_secrets: As for `create_app`.
        hosts: As for `create_app`.
        max_body_bytes: As for `create_app`.
        rate: As for `create_app`.
        audit: As for `create_app`.

    Returns:
        A FastAPI application.

    Raises:
        ConfigurationError: If an argument or a variable cannot be used, or there is no key.
        MissingExtraError: If the extra `serve` is not installed.
    """
    settings = checked_settings(
        keys=keys,
        signing=None,
        webhook_secret=webhook_secret,
        analytics_secrets=analytics_secrets,
        hosts=hosts,
        cors_origins=(),
        max_body_bytes=max_body_bytes,
        rate=rate,
        audit=audit,
    )
    try:
        from autoplay_rag.relay.metrics import RelayMetrics
        from autoplay_rag.serve.auth import Authenticator
        from autoplay_rag.serve.browsers import Browsers
        from autoplay_rag.serve.building import assembled
        from autoplay_rag.serve.routes import analytics, health, turns, webhooks
        from autoplay_rag.serve.serving import Receiving
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("autoplay_rag"):
            raise
        raise MissingExtraError("create_relay_app()", "serve") from None
    authenticator = Authenticator(settings.keys, settings.signing)
    app = assembled(
        Receiving(intake=relay, settings=settings, events=EventIntake(relay)),
        [webhooks.router, analytics.router, turns.router, health.router],
        lambda _app: started(relay),
        authenticator=authenticator,
        browsers=Browsers(authenticator),
        description="Passes payloads on into a topic of Kafka.",
    )
    app.state.metrics = RelayMetrics(relay)
    return app
