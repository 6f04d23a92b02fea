"""The sources that a command line or a settings file names: `stream:URL pull:URL webhook:posthog`. Pure.

A bare URL is a stream. A webhook has no URL: the server has a route for it, and its spec says that
deliveries of this tool are expected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from autoplay_rag.errors import ConfigurationError

__all__ = ["ANALYTICS_TOOLS", "AnalyticsTool", "SourceKind", "SourceSpec", "parse_spec", "tools_of"]

SourceKind: TypeAlias = Literal["stream", "pull", "webhook"]
AnalyticsTool: TypeAlias = Literal["posthog", "amplitude", "segment"]

ANALYTICS_TOOLS: Final[tuple[AnalyticsTool, ...]] = ("posthog", "amplitude", "segment")
"""The analytics tools whose webhooks the server understands."""

_FORMS: Final = "stream:URL, pull:URL or webhook:TOOL"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One source.

    Attributes:
        kind: "stream", "pull" or "webhook".
        value: The URL of a stream or a pull endpoint; the tool of a webhook.
    """

    kind: SourceKind
    value: str


def parse_spec(text: str) -> SourceSpec:
    """Read one source.

    Args:
        text: `stream:URL`, `pull:URL`, `webhook:TOOL`, or a URL, which is a stream.

    Raises:
        ConfigurationError: If it has none of these forms. The message does not quote a URL, which
            may hold a secret.

    Example:
        >>> parse_spec("https://connector.example/stream/acme").kind
        'stream'
        >>> parse_spec("webhook:posthog")
        SourceSpec(kind='webhook', value='posthog')
    """
    kind, colon, value = text.strip().partition(":")
    if not colon or value.startswith("//") or kind not in ("stream", "pull", "webhook"):
        # A bare URL. The client reports what is wrong with it.
        return SourceSpec("stream", text.strip())
    if not value:
        raise ConfigurationError(f"a source has nothing after {kind}: write {_FORMS}")
    if kind == "webhook" and value not in ANALYTICS_TOOLS:
        known = ", ".join(f"webhook:{tool}" for tool in ANALYTICS_TOOLS)
        raise ConfigurationError(f"webhook:{value[:40]} is not known; known are {known}")
    return SourceSpec(cast("SourceKind", kind), value)


def tools_of(specs: Iterable[SourceSpec]) -> frozenset[AnalyticsTool]:
    """Return the analytics tools among sources: those whose routes the server has to accept.

    Example:
        >>> tools_of([parse_spec("webhook:posthog"), parse_spec("https://a.test/stream/acme")])
        frozenset({'posthog'})
    """
    return frozenset(cast("AnalyticsTool", spec.value) for spec in specs if spec.kind == "webhook")
