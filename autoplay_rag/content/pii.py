"""Removes personal data and secrets from payloads before they are written to disk."""

from __future__ import annotations

import hmac
import importlib.util
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import quote, unquote, unquote_plus

import msgspec

from autoplay_rag.content import pii_patterns as patterns
from autoplay_rag.content.pii_patterns import Span
from autoplay_rag.errors import ConfigurationError, MissingExtraError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SlimAction, SummaryPayload

__all__ = ["PII_KINDS", "PiiRedactor"]

PII_KINDS: Final = ("secret", "email", "ip", "iban", "card", "phone")
"""The kinds of data that a `PiiRedactor` finds, in the order of its search."""

_LEAST_KEY_BYTES = 16
_MOST_PASSES = 20
_CLEAN_TEXTS = 4096
_LONGEST_CLEAN_TEXT = 1000
_LETTERS: Final = str.maketrans("0123456789abcdef", "abcdefghijklmnop")

_PLACEHOLDER: Final = re.compile(rf"<(?:{'|'.join(PII_KINDS)})(?::[a-p]{{16}})?>")
_ENCODED: Final = re.compile(r"[^\s\"<>&?#=;/]*%[0-9A-Fa-f]{2}[^\s\"<>&?#=;/]*")
_PLUSES: Final = re.compile(r"(?<==)[^\s\"<>&?#=;/]*\+[^\s\"<>&?#=;/]*")
_DECODINGS = 3

_OPENED: Final = re.compile(r"\b(?:typed|entered|pasted|wrote|filled(?: in)?)\s+([\"“'])")
_CLOSED: Final = re.compile(r"[\"”'](?=\s+(?:in|into)\b)")
_TYPED_NOTHING: Final = re.compile(
    r"\b(?:typed|entered|pasted|wrote)\s+(?:text\s+)?(?:into\s|in\s+(?:the\s|an?\s|[\"“']))"
)
_QUOTES: Final = "\"“”'"
_QUOTED: Final = re.compile(r"[\"“'](.+?)[\"”']")
_LEAST_TYPED_DIGITS = 4
_WRITING_TYPES: Final = frozenset(("type", "input", "paste"))


class PiiRedactor:
    r"""Replaces personal data and secrets in payloads. Pass it as `IngestPipeline(redact=...)`.

    It finds email addresses, phone numbers, payment cards, IBANs, IP addresses, and secrets: API
    keys, tokens, private keys, and passwords in URLs, query strings and password fields. It reads
    titles, descriptions, URLs (also percent-encoded), summaries, and the question, answer and tools
    of chat turns. It does not find names or postal addresses.

    Ids are not changed, so that you can still look them up, with one exception: a `user_id`,
    `session_id` or `conversation_id` that contains an email address, or a phone number that begins
    with `+`, is replaced by its pseudonym. Without `pseudonyms` it is removed, because one shared
    placeholder would merge many people into one. `redact_id` returns the id to search for.

    The `email` field is replaced by its pseudonym, or removed without `pseudonyms`. The pipeline
    still drops it unless `include_email` is set.

    Redaction is idempotent. It does not raise an exception for any text.

    Args:
        pseudonyms: A secret key of at least 16 bytes. Each value is then replaced by a pseudonym,
            its HMAC: `<email:...>` instead of `<email>`. Equal values have equal pseudonyms, also
            if they are spelled differently (`Ann@acme.test`, `+49 30 123456`). Secrets have no
            pseudonyms. Keep the key outside the journal: anyone with the key can test whether a
            guessed value was there.
        keep_typed: False also removes text that a person typed into a field, and the query strings
            of URLs, because they often repeat it. Summaries, chat turns, page titles and clicked
            suggestions may still quote it.
        region: The country, or several, of national phone numbers, such as "US". None finds
            numbers that begin with `+` or `00`, numbers written as `(212) 555-0123` or
            `212-555-0123`, and digits after a word such as "phone".
        kinds: The kinds to remove: any of "secret", "email", "ip", "iban", "card", "phone".

    Raises:
        MissingExtraError: If the extra `pii` is not installed. Only "phone" needs it.
        ConfigurationError: If an argument is invalid.

    Example:
        >>> from autoplay_rag import SummaryPayload
        >>> redact = PiiRedactor()
        >>> redact(SummaryPayload(summary="Asked ann@acme.test to call +49 30 901820.")).summary
        'Asked <email> to call <phone>.'
        >>> keyed = PiiRedactor(pseudonyms=b"32 random bytes from your vault.")
        >>> keyed.redact_text("ann@acme.test") == keyed.redact_text("Ann@ACME.test")
        True
    """

    def __init__(
        self,
        *,
        pseudonyms: bytes | None = None,
        keep_typed: bool = True,
        region: str | Sequence[str] | None = None,
        kinds: Collection[str] = PII_KINDS,
    ) -> None:
        if pseudonyms is not None and not isinstance(pseudonyms, bytes | bytearray):
            raise ConfigurationError(f"pseudonyms must be bytes, not {type(pseudonyms).__name__}")
        if pseudonyms is not None and len(pseudonyms) < _LEAST_KEY_BYTES:
            raise ConfigurationError(
                f"pseudonyms must have at least {_LEAST_KEY_BYTES} bytes, such as secrets.token_bytes(32)"
            )
        wanted = {kinds} if isinstance(kinds, str) else set(kinds)
        if unknown := wanted - set(PII_KINDS):
            raise ConfigurationError(
                f"kinds takes {', '.join(PII_KINDS)}, not {', '.join(sorted(map(repr, unknown)))}"
            )
        self._key = None if pseudonyms is None else bytes(pseudonyms)
        self._keep_typed = keep_typed
        self._kinds = frozenset(wanted)
        self._phonenumbers = _phonenumbers() if "phone" in wanted else None
        self._regions = _checked_regions(region, self._phonenumbers)
        self._finders = self._make_finders()
        self._clean: dict[str, None] = {}

    def __repr__(self) -> str:
        options = [] if self._key is None else ["pseudonyms=..."]  # never the key
        if not self._keep_typed:
            options.append("keep_typed=False")
        if self._regions:
            options.append(f"region={self._regions!r}")
        if len(self._kinds) < len(PII_KINDS):
            options.append(f"kinds={tuple(kind for kind in PII_KINDS if kind in self._kinds)!r}")
        return f"{type(self).__name__}({', '.join(options)})"

    # -- payloads -----------------------------------------------------------------------------

    def __call__(self, payload: Payload) -> Payload:
        """Return the payload without personal data; the same object if it has none."""
        changes: dict[str, Any] = {}
        if isinstance(payload, ActionsPayload):
            actions = [self._action(action) for action in payload.actions]
            if any(new is not old for new, old in zip(actions, payload.actions, strict=True)):
                changes["actions"] = actions
            if payload.email:
                changes["email"] = self._email(payload.email)
        elif isinstance(payload, SummaryPayload):
            changes["summary"] = self.redact_text(payload.summary)
        else:
            changes["question"] = self.redact_text(payload.question)
            changes["answer"] = self.redact_text(payload.answer)
            changes["tools"] = [self.redact_text(tool) for tool in payload.tools]
        changes["product_id"] = self._id(payload.product_id) or ""
        changes["session_id"] = self._id(payload.session_id)
        if isinstance(payload, ActionsPayload | ChatTurn):
            changes["user_id"] = self._id(payload.user_id)
            changes["conversation_id"] = self._id(payload.conversation_id)
        found: Payload = _replaced(payload, changes)
        return found

    def _action(self, action: SlimAction) -> SlimAction:
        title, description = action.title, action.description
        urls = {"canonical_url": action.canonical_url, "raw_url": action.raw_url}
        if self._keep_typed:
            description = self._without_typed_data(description, title)
        else:
            description = _without_typed(description, title, action.type)
            urls = {name: _without_query(url) for name, url in urls.items()}
        changes: dict[str, Any] = {
            "title": self.redact_text(title),
            "description": self.redact_text(description),
            **{name: self.redact_text(url) for name, url in urls.items()},
            "session_id": self._id(action.session_id),
            "user_id": self._id(action.user_id),
            "conversation_id": self._id(action.conversation_id),
        }
        if action.type:
            changes["type"] = self.redact_text(action.type)
        if action.email:
            changes["email"] = self._email(action.email)
        found: SlimAction = _replaced(action, changes)
        return found

    def _email(self, email: str) -> str | None:
        if "email" not in self._kinds or _PLACEHOLDER.fullmatch(email):
            return email
        return self._name("email", email) if self._key else None

    # -- ids ----------------------------------------------------------------------------------

    def redact_id(self, value: str) -> str | None:
        """Return the redacted id, to look it up in the pipeline.

        Args:
            value: A `user_id`, `session_id` or `conversation_id`.

        Returns:
            The id itself if it contains no email address and no phone number that begins with `+`.
            Otherwise its pseudonym; None without `pseudonyms`.

        Example:
            >>> PiiRedactor().redact_id("u-4711")
            'u-4711'
            >>> keyed = PiiRedactor(pseudonyms=b"32 random bytes from your vault.")
            >>> keyed.redact_id("ann@acme.test")
            '<email:nedilbfnmbjbpjfl>'
        """
        return self._id(value)

    def _id(self, value: str | None) -> str | None:
        if not value or not ("@" in value or "+" in value or "%" in value or "\uff0b" in value):
            return value
        decoded = text = _decoded(value)
        for _ in range(_MOST_PASSES):  # as in `_redacted`
            found = self._replaced(text, "email", self._found("email", text))
            numbers = (span for span in self._found("phone", found) if found[span[0]] in "+\uff0b")
            found = self._replaced(found, "phone", numbers)
            if found == text:
                break
            text = found
        if text == decoded:
            return value
        return text if self._key else None

    def _found(self, kind: str, text: str) -> Iterator[Span]:
        finder = self._finders.get(kind)
        return iter(()) if finder is None else finder(text)

    # -- texts --------------------------------------------------------------------------------

    def redact_text(self, text: str) -> str:
        """Return a text without personal data.

        Example:
            >>> redact = PiiRedactor(region="US").redact_text
            >>> redact("https://app.test/reset?email=ann%40acme.test&token=d3b07384")
            'https://app.test/reset?email=<email>&token=<secret>'
            >>> redact("Order 2125550123 of 2026-11-26: call (212) 555-0123 from 203.0.113.7")
            'Order 2125550123 of 2026-11-26: call <phone> from <ip>'
        """
        if not text or text in self._clean:
            return text
        found = self._redacted(text)
        if found == text and len(text) <= _LONGEST_CLEAN_TEXT:
            if len(self._clean) >= _CLEAN_TEXTS:
                self._clean.clear()
            self._clean[text] = None
        return found

    def _redacted(self, text: str) -> str:
        # A pass may uncover data that another span hid. Each pass shortens the remaining text.
        for _ in range(_MOST_PASSES):
            found = self._one_pass(text)
            if found == text:
                break
            text = found
        return text

    def _one_pass(self, text: str) -> str:
        for kind, finder in self._finders.items():
            text = self._replaced(text, kind, finder(text))
        if "%" in text:
            text = _ENCODED.sub(lambda part: self._component(part[0], _decodings(part[0])), text)
        if "+" in text and "=" in text:
            text = _PLUSES.sub(lambda part: self._component(part[0], _spaced(part[0])), text)
        return text

    def _component(self, part: str, decodings: Iterable[str]) -> str:
        """Redact a part of a URL. It is encoded again if something was removed."""
        for decoded in decodings:
            found = self._redacted(decoded)
            if found != decoded:
                return "".join(
                    piece if _PLACEHOLDER.fullmatch(piece) else quote(piece, errors="replace")
                    for piece in _split(found)
                )
        return part

    def _replaced(self, text: str, kind: str, spans: Iterable[Span]) -> str:
        parts: list[str] = []
        done = 0
        for start, end in sorted(spans):
            if start < done or start >= end:
                continue
            parts += (text[done:start], self._name(kind, text[start:end]))
            done = end
        if not parts:
            return text
        return "".join((*parts, text[done:]))

    def _name(self, kind: str, value: str) -> str:
        """The replacement of a value: a placeholder or a pseudonym."""
        if self._key is None or kind == "secret":
            return f"<{kind}>"
        normal = f"{kind}:{self._normalized(kind, value)}".encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._key, normal, "sha256")[:8].hex()
        # Letters only: digits might be found as another number.
        return f"<{kind}:{digest.translate(_LETTERS)}>"

    def _normalized(self, kind: str, value: str) -> str:
        if kind == "email":
            return value.strip().casefold()
        if kind == "ip":
            return ip_address(value).compressed
        if kind == "iban":
            return "".join(filter(str.isalnum, value)).upper()
        if kind == "phone" and (number := self._e164(value)):
            return number
        digits = "".join(str(int(c)) for c in value if c.isdecimal())
        return digits or value.strip().casefold()

    def _e164(self, value: str) -> str | None:
        library = self._phonenumbers
        assert library is not None
        value = value.strip()
        given = f"+{value[2:]}" if value.startswith("00") else value
        for region in (*self._regions, "US"):
            try:
                number = library.parse(given, region)
            except library.NumberParseException:
                continue
            if library.is_valid_number(number):
                return str(library.format_number(number, library.PhoneNumberFormat.E164))
        return None

    def _make_finders(self) -> Mapping[str, Callable[[str], Iterator[Span]]]:
        library, regions = self._phonenumbers, self._regions
        every: dict[str, Callable[[str], Iterator[Span]]] = {
            "secret": patterns.secrets,
            "email": patterns.emails,
            "ip": patterns.ip_addresses,
            "iban": patterns.ibans,
            "card": patterns.cards,
            "phone": lambda text: patterns.phones(text, library, regions),
        }
        return {kind: every[kind] for kind in PII_KINDS if kind in self._kinds}

    # -- typed text ---------------------------------------------------------------------------

    def _without_typed_data(self, description: str, title: str) -> str:
        """Remove text that was typed into a field for passwords, emails and so on."""
        spans = _typed_spans(description)
        ends = [start for start, _ in spans[1:]] + [len(description)]
        for (start, end), until in reversed(list(zip(spans, ends[: len(spans)], strict=True))):
            after = description[end + 1 : until]
            named = _QUOTED.search(after)
            kind = _field_kind(named[1] if named else after) or _field_kind(title)
            typed = description[start:end]
            if kind in self._kinds and self._is_of(kind, typed):
                description = description[:start] + self._name(kind, typed) + description[end:]
        return description

    def _is_of(self, kind: str, typed: str) -> bool:
        """Whether to replace all of a text that was typed into a field of this kind."""
        if kind == "secret":
            return bool(typed)
        if not typed or _PLACEHOLDER.search(typed) or any(self._finders[kind](typed)):
            return False  # `redact_text` redacts the description afterwards
        return kind == "email" or sum(map(str.isdecimal, typed)) >= _LEAST_TYPED_DIGITS


_field_kind = lru_cache(maxsize=1024)(patterns.field_kind)


def _typed_spans(description: str) -> list[Span]:
    """Find the typed texts in a description, without their quotation marks."""
    if "typed" not in description and not _OPENED.search(description):
        return []
    closed = [found.start() for found in _CLOSED.finditer(description)]
    spans: list[Span] = []
    done = at = 0
    for opened in _OPENED.finditer(description):
        start = opened.end()
        if start < done:
            continue  # inside the previous typed text
        while at < len(closed) and closed[at] < start:
            at += 1
        if at == len(closed):
            break
        done = closed[at]
        spans.append((start, done))
    return spans


def _without_typed(description: str, title: str, type: str) -> str:
    """Remove the typed text from a description."""
    if opened := _OPENED.search(description):
        closed = [found.start() for found in _CLOSED.finditer(description, opened.end())]
        # The typed text may contain quotation marks, so it ends at the last possible closing one.
        end = closed[-1] if closed else max(map(description.rfind, _QUOTES))
        end = max(end + 1, opened.end()) if end >= opened.end() else len(description)
        return f'{description[: opened.start(1)]}"…"{description[end:]}'
    if type not in _WRITING_TYPES or not description or _says_only_where(description):
        return description
    # Unknown wording: any part of it may be typed text.
    return f'User typed "…" into "{title}"' if title else 'User typed "…"'


def _says_only_where(description: str) -> bool:
    found = _TYPED_NOTHING.search(description)
    if found is None or ":" in description or "=" in description:
        return False
    return not any(mark in description[: found.start()] for mark in _QUOTES)


def _without_query(url: str) -> str:
    """The URL without its query string, and without a fragment that has one."""
    before, mark, fragment = url.partition("#")
    before = before.partition("?")[0]
    keep = mark and not any(character in fragment for character in "?=&")
    return f"{before}#{fragment}" if keep else before


def _decodings(part: str) -> Iterator[str]:
    yield _decoded(part)
    if "+" in part:
        yield _decoded(unquote_plus(part))


def _spaced(part: str) -> Iterator[str]:
    sign = "+" if part[0] == "+" else ""
    yield sign + part[len(sign) :].replace("+", " ")


def _decoded(text: str) -> str:
    for _ in range(_DECODINGS):
        if "%" not in text:
            break
        text = unquote(text)
    return text


def _split(text: str) -> Iterator[str]:
    """Split a text into its placeholders and the texts between them."""
    done = 0
    for found in _PLACEHOLDER.finditer(text):
        yield text[done : found.start()]
        yield found[0]
        done = found.end()
    yield text[done:]


def _replaced(payload: Any, changes: Mapping[str, Any]) -> Any:
    changed = {name: value for name, value in changes.items() if value != getattr(payload, name)}
    return msgspec.structs.replace(payload, **changed) if changed else payload


def _phonenumbers() -> Any:
    if importlib.util.find_spec("phonenumbers") is None:
        raise MissingExtraError('redact="pii"', "pii")
    import phonenumbers

    return phonenumbers


def _checked_regions(region: str | Sequence[str] | None, library: Any) -> tuple[str, ...]:
    if region is None:
        return ()
    regions = (region,) if isinstance(region, str) else tuple(region)
    for name in regions:
        if library is not None and name not in library.SUPPORTED_REGIONS:
            raise ConfigurationError(f'region must be a country code such as "US", not {name!r}')
    return regions
