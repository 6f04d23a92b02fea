"""The text of a chunk: what is embedded, searched and shown (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction

__all__ = ["action_line", "render", "render_actions"]


def render(payloads: Sequence[Payload]) -> str:
    """The text of one chunk, never empty."""
    parts: list[str] = []
    actions: list[SlimAction] = []
    for payload in payloads:
        if isinstance(payload, ActionsPayload):
            actions.extend(payload.actions)
        elif text := payload.to_text().strip():
            parts.append(text)
    if actions:
        parts.append(render_actions(actions))
    return "\n".join(parts) or "no actions"


def render_actions(actions: Sequence[SlimAction]) -> str:
    """The text of a sequence of actions: the site, then what was done, a line each."""
    lines = dict.fromkeys(_lines(actions))
    return "\n".join(lines) or "no actions"


def action_line(action: SlimAction) -> str:
    """What was done, in plain words; "" where nothing says it.

    Example:
        >>> action_line(SlimAction("Export", "User clicked Export"))
        'clicked Export'
    """
    return (action.description or action.title or action.type).strip().removeprefix("User ")


def _lines(actions: Sequence[SlimAction]) -> Iterable[str]:
    site = None
    for action in actions:
        found = _site(action.canonical_url or action.raw_url)
        if found and found != site:
            yield (site := found)
        if line := action_line(action):
            yield line


def _site(url: str) -> str:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    return host.removeprefix("www.").partition(".")[0]
