"""What the connector sends, as typed values. `autoplay_rag.decoding` reads them from bytes.

The field names, defaults and text forms are those of the connector's wire format, which its
public SDK (`autoplay-sdk`) has too: code written for those classes works with these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import msgspec

from autoplay_rag._html import payload_html
from autoplay_rag._lazy import lazy_exports
from autoplay_rag._tolerant import Int64, read_tolerantly

if TYPE_CHECKING:
    from autoplay_rag.decoding import decode

__all__ = [
    "ActionsPayload",
    "AnyPayload",
    "ChatTurn",
    "Payload",
    "SlimAction",
    "SummaryPayload",
    "decode",
]


class _Wire(msgspec.Struct, gc=False):
    """What all payloads share. `gc=False`: they hold plain data and can form no cycle."""

    kind: ClassVar[str]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from a decoded JSON object, tolerantly.

        Missing and null values become the defaults, unknown keys are left out, an id that is a
        whole number becomes text, a time in ISO 8601 becomes Unix seconds (UTC where it names no
        zone), and any other value of a wrong type its default.

        Args:
            data: A JSON object as Python values.

        Returns:
            The payload. It never fails for what the object holds.

        Raises:
            TypeError: If `data` is not a mapping.

        Example:
            >>> SummaryPayload.from_dict({"session_id": "s1", "summary": "Exported a report."})
            SummaryPayload(product_id='', session_id='s1', summary='Exported a report.', replaces=0, forwarded_at=0.0)
        """
        if not isinstance(data, Mapping):
            raise TypeError(
                f"{cls.__name__}.from_dict() takes a mapping, not {type(data).__name__}"
            )
        return read_tolerantly(cls, data, _ignore)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object the wire format has for this value, with every field.

        Example:
            >>> SummaryPayload("acme", "s1", "Exported a report.", 3, 1.0).to_dict()["type"]
            'summary'
        """
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built

    def _repr_html_(self) -> str:
        return payload_html(self.to_dict())


class SlimAction(_Wire, gc=False):
    """One thing a person did in the user interface.

    Attributes:
        title: The element's or page's name.
        description: What happened, in words.
        canonical_url: The page, dynamic segments as `:id`.
        index: Its position as the connector counts it; batches may restart at 0.
        type: `pageview`, `click`, `submit`, `type`, `focus`, `blur`, ...
        timestamp_start: Unix seconds; 0 where unknown.
        timestamp_end: Unix seconds; 0 where unknown.
        raw_url: The page with its query string.
        session_id: The visit, where the connector repeats it here.
        user_id: The person. Personal data.
        email: The person's address. Personal data.
        conversation_id: The chat thread, once linked.
    """

    title: str = ""
    description: str = ""
    canonical_url: str = ""
    index: Int64 = 0
    type: str = ""
    timestamp_start: float = 0.0
    timestamp_end: float = 0.0
    raw_url: str = ""
    session_id: str | None = None
    user_id: str | None = None
    email: str | None = None
    conversation_id: str | None = None

    def to_text(self) -> str:
        """The wire format's own one-line form.

        Example:
            >>> SlimAction("Export", "User clicked Export", "https://a.test/r", 2, "click").to_text()
            '[2] click: User clicked Export — https://a.test/r'
        """
        return f"[{self.index}] {self.type}: {self.description} — {self.canonical_url}"


class ActionsPayload(_Wire, gc=False, tag="actions", tag_field="type"):
    """A batch of actions of one session.

    Attributes:
        product_id: The product the connector serves.
        session_id: The visit; None until an anonymous session is linked.
        user_id: The person. Personal data.
        email: The person's address. Personal data.
        actions: What they did, in order.
        count: The number of actions; a wrong one is corrected when a payload is made.
        forwarded_at: Unix seconds when the connector sent the batch.
        conversation_id: The chat thread, once linked.
    """

    kind: ClassVar[str] = "actions"

    product_id: str = ""
    session_id: str | None = None
    user_id: str | None = None
    email: str | None = None
    actions: list[SlimAction] = []
    count: Int64 = 0
    forwarded_at: float = 0.0
    conversation_id: str | None = None

    def __post_init__(self) -> None:
        if self.count != len(self.actions):
            self.count = len(self.actions)
        # This runs for each event: compared in place, set only where there is something to set.
        if (
            self.session_id == ""
            or self.user_id == ""
            or self.email == ""
            or self.conversation_id == ""
        ):
            self.session_id = self.session_id or None
            self.user_id = self.user_id or None
            self.email = self.email or None
            self.conversation_id = self.conversation_id or None

    @classmethod
    def merge(cls, payloads: Sequence[ActionsPayload]) -> ActionsPayload:
        """Put several batches together as one.

        Actions are concatenated and numbered anew from 0; of each identity the first there is
        wins; `forwarded_at` is the latest. The payloads given are left as they are.

        Args:
            payloads: At least one, in order.

        Raises:
            ValueError: If there is none.

        Example:
            >>> a = ActionsPayload(session_id="s1", actions=[SlimAction("Home")])
            >>> b = ActionsPayload(session_id="s1", user_id="u1", actions=[SlimAction("Export")])
            >>> ActionsPayload.merge([a, b]).count
            2
        """
        if not payloads:
            raise ValueError("ActionsPayload.merge() needs at least one payload, got none")
        joined = [action for payload in payloads for action in payload.actions]
        actions = [
            msgspec.structs.replace(action, index=index) for index, action in enumerate(joined)
        ]
        return cls(
            product_id=payloads[0].product_id,
            session_id=_first(p.session_id for p in payloads),
            user_id=_first(p.user_id for p in payloads),
            email=_first(p.email for p in payloads),
            actions=actions,
            count=len(actions),
            forwarded_at=max(p.forwarded_at for p in payloads),
            conversation_id=_first(p.conversation_id for p in payloads),
        )

    def to_text(self) -> str:
        """The wire format's own form: a heading, then a line for each action.

        Example:
            >>> opened = SlimAction("Home", "User opened Home", "https://a.test/", 0, "pageview")
            >>> print(ActionsPayload(session_id="s1", actions=[opened]).to_text())
            Session s1 — 1 actions
            [0] pageview: User opened Home — https://a.test/
        """
        heading = f"Session {self.session_id or 'unknown'} — {len(self.actions)} actions"
        return "\n".join([heading, *(action.to_text() for action in self.actions)])


class SummaryPayload(_Wire, gc=False, tag="summary", tag_field="type"):
    """Prose that condenses a session's actions so far.

    Attributes:
        product_id: The product the connector serves.
        session_id: The visit.
        summary: The prose.
        replaces: How many actions it condenses.
        forwarded_at: Unix seconds when the connector sent it.
    """

    kind: ClassVar[str] = "summary"

    product_id: str = ""
    session_id: str | None = None
    summary: str = ""
    replaces: Int64 = 0
    forwarded_at: float = 0.0

    def __post_init__(self) -> None:
        if self.session_id == "":
            self.session_id = None

    def to_text(self) -> str:
        """The summary itself."""
        return self.summary


class ChatTurn(_Wire, gc=False, tag="chat", tag_field="type"):
    """One exchange between a person and an assistant, as part of their session.

    The connector does not send these; an application records them beside what it does send,
    so that later questions find what was done and what was said.

    Attributes:
        product_id: The product.
        session_id: The visit the exchange belongs to.
        user_id: The person. Personal data.
        conversation_id: The chat thread.
        question: What the person asked.
        answer: What the assistant answered.
        tools: Names of the tools it used, in order.
        forwarded_at: Unix seconds of the answer.
    """

    kind: ClassVar[str] = "chat"

    product_id: str = ""
    session_id: str | None = None
    user_id: str | None = None
    conversation_id: str | None = None
    question: str = ""
    answer: str = ""
    tools: list[str] = []
    forwarded_at: float = 0.0

    def __post_init__(self) -> None:
        self.session_id = self.session_id or None
        self.user_id = self.user_id or None
        self.conversation_id = self.conversation_id or None

    def to_text(self) -> str:
        """Question and answer, a line each.

        Example:
            >>> print(ChatTurn(question="Where is export?", answer="Under Reports.").to_text())
            User asked: Where is export?
            Assistant answered: Under Reports.
        """
        return f"User asked: {self.question}\nAssistant answered: {self.answer}"


for _cls in (SlimAction, ActionsPayload, SummaryPayload, ChatTurn):
    # So that dataclasses.fields, asdict and replace take them; all else stays msgspec's.
    dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False)(_cls)

Payload: TypeAlias = ActionsPayload | SummaryPayload | ChatTurn
"""Any of the payloads; their `kind` is "actions", "summary" or "chat"."""

AnyPayload: TypeAlias = ActionsPayload | SummaryPayload
"""What a connector sends."""

if not TYPE_CHECKING:  # a module with `__getattr__` would have every name for a type checker
    # `decode` used to be defined here, and programs import it from here. It is loaded on first use,
    # so that this module does not depend on the one that depends on it.
    __getattr__, __dir__ = lazy_exports(__name__, {"decode": "autoplay_rag.decoding"})


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _ignore(_: str) -> None:
    """Report repairs to nobody."""
