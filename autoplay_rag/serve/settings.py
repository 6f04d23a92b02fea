"""The checked arguments of `create_app`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoplay_rag.connector.webhook import WebhookReceiver
from autoplay_rag.serve.audit import AuditSink
from autoplay_rag.serve.jobs import JobKind
from autoplay_rag.serve.keys import Keys
from autoplay_rag.serve.tokens import SigningKeys
from autoplay_rag.sources.specs import AnalyticsTool

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked arguments of `create_app`; see there."""

    keys: Keys
    signing: SigningKeys | None
    webhooks: WebhookReceiver | None = field(repr=False)
    analytics_secrets: Mapping[AnalyticsTool, str] = field(repr=False)
    hosts: frozenset[str]
    cors_origins: frozenset[str]
    max_body_bytes: int
    rate: float
    audit: AuditSink
    job_kinds: Mapping[str, JobKind]
    routes: str
    version: str
