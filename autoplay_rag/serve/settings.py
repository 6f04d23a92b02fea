"""What the HTTP interface lets through, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from autoplay_rag._checks import check_above, check_choice
from autoplay_rag._secrets import secret_from
from autoplay_rag.connector.webhook import WebhookReceiver
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.serve.audit import AuditSink
from autoplay_rag.serve.keys import Keys
from autoplay_rag.serve.tokens import SigningKeys
from autoplay_rag.sources.specs import ANALYTICS_TOOLS, AnalyticsTool

__all__ = ["WEBHOOK_VARIABLE", "Settings", "checked_settings"]

WEBHOOK_VARIABLE: Final = "AUTOPLAY_RAG_WEBHOOK_SECRET"
_ANALYTICS_VARIABLE: Final = "AUTOPLAY_RAG_{}_SECRET"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an application lets through; see `create_app`."""

    keys: Keys
    signing: SigningKeys | None
    webhooks: WebhookReceiver | None = field(repr=False)
    analytics_secrets: Mapping[AnalyticsTool, str] = field(repr=False)
    hosts: frozenset[str]
    cors_origins: frozenset[str]
    max_body_bytes: int
    rate: float
    audit: AuditSink
    version: str


def checked_settings(
    *,
    keys: Keys | None,
    signing: SigningKeys | None,
    webhook_secret: str | None,
    analytics_secrets: Mapping[str, str] | None,
    hosts: Collection[str],
    cors_origins: Collection[str],
    max_body_bytes: int,
    rate: float,
    audit: AuditSink,
) -> Settings:
    """Check the arguments of an application, and take the rest from the environment.

    The arguments are those of `create_app`; `signing` is None if no token is valid.

    Raises:
        ConfigurationError: If an argument or a variable cannot be used, or there is no key.
    """
    keys = keys if keys is not None else Keys.from_environment()
    if not keys:
        raise ConfigurationError(
            "there is no key: set AUTOPLAY_RAG_ADMIN_KEY, or give keys=Keys(admin=...)"
        )
    if isinstance(hosts, str) or isinstance(cors_origins, str):
        raise ConfigurationError("hosts and cors_origins are lists of texts, not one text")
    if "*" in cors_origins or "*" in hosts:
        raise ConfigurationError("hosts and cors_origins take names, not '*'")
    check_above("max_body_bytes", max_body_bytes, whole=True)
    check_above("rate", rate)
    secret = webhook_secret if webhook_secret is not None else secret_from(WEBHOOK_VARIABLE)
    return Settings(
        keys=keys,
        signing=signing,
        webhooks=WebhookReceiver(secret) if secret else None,
        analytics_secrets=_analytics_secrets(analytics_secrets, secret),
        hosts=frozenset((*_LOOPBACK, *(host.lower() for host in hosts))),
        cors_origins=frozenset(cors_origins),
        max_body_bytes=max_body_bytes,
        rate=rate,
        audit=audit,
        version=version("autoplay-rag"),
    )


def _analytics_secrets(
    given: Mapping[str, str] | None, default: str | None
) -> dict[AnalyticsTool, str]:
    if given is not None:
        for tool, secret in given.items():
            check_choice("a key of analytics_secrets", tool, ANALYTICS_TOOLS)
            if not secret:
                raise ConfigurationError(f"the secret of {tool} is empty")
    found: dict[AnalyticsTool, str] = {}
    for known in ANALYTICS_TOOLS:
        variable = _ANALYTICS_VARIABLE.format(known.upper())
        own = secret_from(variable) if given is None else given.get(known)
        if named := own or default:
            found[known] = named
    return found
