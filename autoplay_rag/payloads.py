"""What the connector sends, as typed values.

`decode` takes the bytes of one event. Its fast path is strict (msgspec, compiled); only an
event that fails there is read a second time, value by value: a value of a wrong type costs
itself (or the one action it stands in), never the payload around it.

The field names, defaults and text forms are those of the connector's wire format, which its
public SDK (`autoplay-sdk`) has too: code written for those classes works with these.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeAlias, TypeVar

import msgspec

from autoplay_rag._html import payload_html
from autoplay_rag.errors import DecodeError, UnknownPayloadError

__all__ = [
    "ActionsPayload",
    "AnyPayload",
    "ChatTurn",
    "Payload",
    "SlimAction",
    "SummaryPayload",
    "decode",
]

Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""JSON has integers of any length; what is journalled again must fit a machine word."""

OnRepair: TypeAlias = Callable[[str], None]
"""Called with a short description of each value that was given up or made fit."""


class _Wire(msgspec.Struct, gc=False):
    """What all payloads share. `gc=False`: they hold plain data and can form no cycle."""

    kind: ClassVar[str]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from a decoded JSON object, tolerantly.

        Missing and null values become the defaults, unknown keys are left out, an id that is a
        whole number becomes text, and any other value of a wrong type its default.

        Args:
            data: A JSON object as Python values.

        Returns:
            The payload. It never fails for what the object holds.

        Raises:
            TypeError: If `data` is no mapping.

        Example:
            >>> SummaryPayload.from_dict({"session_id": "s1", "summary": "Exported a report."})
            SummaryPayload(product_id='', session_id='s1', summary='Exported a report.', replaces=0, forwarded_at=0.0)
        """
        if not isinstance(data, Mapping):
            raise TypeError(
                f"{cls.__name__}.from_dict() takes a mapping, not {type(data).__name__}"
            )
        return _tolerant(cls, data, _ignore)

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

_TYPES: dict[str, type[ActionsPayload | SummaryPayload | ChatTurn]] = {
    cls.kind: cls for cls in (ActionsPayload, SummaryPayload, ChatTurn)
}
_decode_strictly: Callable[[bytes | str], Payload] = msgspec.json.Decoder(
    ActionsPayload | SummaryPayload | ChatTurn
).decode


def decode(data: bytes | str, *, on_repair: OnRepair | None = None) -> Payload:
    """Read the payload in one event's data.

    Args:
        data: The JSON of one event.
        on_repair: Called once for each value that had a wrong type and was given up, or made
            fit, with where it stood and what was found there (never the value itself).

    Returns:
        The payload, complete but for the values given up.

    Raises:
        UnknownPayloadError: If the event is of a type this version does not know.
        DecodeError: If the data is no JSON object.

    Example:
        >>> decode(b'{"type": "summary", "session_id": "s1", "summary": "Exported a report."}').kind
        'summary'
    """
    try:
        return _decode_strictly(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _decode_tolerantly(data, on_repair or _ignore)


def _decode_tolerantly(data: bytes | str, on_repair: OnRepair) -> Payload:
    try:
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        found = json.loads(text, parse_int=_parse_int)
    except RecursionError:
        raise DecodeError("an event's JSON is nested too deeply") from None
    except ValueError as error:
        # json's message quotes nothing of the text but a position.
        raise DecodeError(f"an event is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DecodeError(f"an event is a JSON {_name(found)}, not an object")
    type_ = found.get("type")
    if not isinstance(type_, str):
        raise UnknownPayloadError("" if type_ is None else _name(type_))
    cls = _TYPES.get(type_)
    if cls is None:
        raise UnknownPayloadError(type_)
    return _tolerant(cls, found, on_repair)


def _parse_int(digits: str) -> int | float:
    """Python refuses to read very long integers; one such number is not worth the event."""
    return int(digits) if len(digits) <= _INT64_DIGITS else math.inf


_T = TypeVar("_T", bound=_Wire)


def _tolerant(cls: type[_T], data: Mapping[str, Any], on_repair: OnRepair, at: str = "") -> _T:
    """Build `cls` field by field; what does not fit is given up and reported."""
    values: dict[str, Any] = {}
    for field in _fields(cls):
        value = data.get(field.encode_name)
        if value is None:
            continue
        try:
            values[field.name] = _READERS[cls, field.name](value, on_repair, f"{at}{field.name}")
        except (TypeError, ValueError, OverflowError) as error:
            on_repair(f"{at}{field.name}: {error}")
    return cls(**values)


def _text(value: Any, on_repair: OnRepair, at: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string was expected, not a {_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        # A lone surrogate is legal in JSON, but no text a store or a model can take.
        on_repair(f"{at}: a lone surrogate was replaced")
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _id(value: Any, on_repair: OnRepair, at: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        # Somebody's own key: without it nobody would know whose payload this is.
        text = str(value)
        on_repair(f"{at}: a number was read as a string")
        return text
    return _text(value, on_repair, at)


def _number(value: Any, _on_repair: OnRepair, _at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number was expected, not a {_name(value)}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _integer(value: Any, on_repair: OnRepair, at: str) -> int:
    number = _number(value, on_repair, at)
    # An int is taken as it is: as a float, one near the limit would be another number.
    whole = value if isinstance(value, int) else int(number)
    if (isinstance(value, float) and number != whole) or not -_INT64 - 1 <= whole <= _INT64:
        raise ValueError("a whole number of 64 bits was expected")
    return whole


def _actions(value: Any, on_repair: OnRepair, at: str) -> list[SlimAction]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"an array was expected, not a {_name(value)}")
    actions: list[SlimAction] = []
    for position, item in enumerate(value):
        where = f"{at}[{position}]"
        if isinstance(item, SlimAction):
            actions.append(item)
        elif isinstance(item, Mapping):
            actions.append(_tolerant(SlimAction, item, on_repair, f"{where}."))
        else:
            on_repair(f"{where}: an object was expected, not a {_name(item)}")
    return actions


def _texts(value: Any, on_repair: OnRepair, at: str) -> list[str]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"an array was expected, not a {_name(value)}")
    texts: list[str] = []
    for position, item in enumerate(value):
        if isinstance(item, str):
            texts.append(_text(item, on_repair, f"{at}[{position}]"))
        else:
            on_repair(f"{at}[{position}]: a string was expected, not a {_name(item)}")
    return texts


_INT64 = 2**63 - 1
_INT64_DIGITS = 20
_BY_TYPE: dict[Any, Callable[[Any, OnRepair, str], Any]] = {
    str: _text,
    str | None: _text,
    Int64: _integer,
    float: _number,
    list[SlimAction]: _actions,
    list[str]: _texts,
}


def _fields(cls: type[_Wire]) -> tuple[msgspec.structs.FieldInfo, ...]:
    fields = _FIELDS.get(cls)
    if fields is None:
        fields = _FIELDS[cls] = msgspec.structs.fields(cls)
        _READERS.update({(cls, field.name): _reader(field) for field in fields})
    return fields


def _reader(field: msgspec.structs.FieldInfo) -> Callable[[Any, OnRepair, str], Any]:
    return _id if field.name.endswith("_id") else _BY_TYPE[field.type]


_FIELDS: dict[type[_Wire], tuple[msgspec.structs.FieldInfo, ...]] = {}
_READERS: dict[tuple[type[_Wire], str], Callable[[Any, OnRepair, str], Any]] = {}


def _name(value: Any) -> str:
    """The JSON name of a value's type, for messages that must not quote the value."""
    return _NAMES.get(type(value), type(value).__name__)


_NAMES = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _ignore(_: str) -> None:
    """What `on_repair` is when nobody asked."""
