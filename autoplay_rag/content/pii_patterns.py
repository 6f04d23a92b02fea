"""Finds personal data and secrets in a text. Pure.

Each function returns spans `(start, end)` of its text. The patterns use possessive or bounded
quantifiers, so the time is linear in the length of the text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from typing import Any, Final, TypeAlias

__all__ = [
    "Span",
    "cards",
    "emails",
    "field_kind",
    "ibans",
    "ip_addresses",
    "is_card",
    "is_iban",
    "phones",
    "secrets",
]

Span: TypeAlias = tuple[int, int]

# -- e-mail addresses -------------------------------------------------------------------------

_LOCAL: Final = r"\w.!$%*+^`{|}~\-"
# Separators of URL parts count as part of an address only directly before the @.
_EMAIL: Final = re.compile(
    rf"(?:(?<![{_LOCAL}])[{_LOCAL}][{_LOCAL}']{{0,255}}+|(?<![=?&#'])[=?&#']++)"
    r"@(?!\d(?:\.\d)?x\.)"  # logo@2x.png
    r"(?:[\w\-]++\.)+(?:xn--[a-zA-Z0-9\-]+|[^\W\d_]{2,63})"
)


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses.

    Example:
        >>> text = "mail ann@acme.test, or see logo@2x.png"
        >>> [text[start:end] for start, end in emails(text)]
        ['ann@acme.test']
    """
    if "@" in text:
        for found in _EMAIL.finditer(text):
            yield found.span()


# -- IP addresses -----------------------------------------------------------------------------

_OCTET: Final = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4: Final = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\d)", re.ASCII)
_VERSION_BEFORE: Final = re.compile(
    r"(?:\b(?:v|ver|version|release|firmware|build|update|section|chapter)[.:]?\s?"
    r"|\b(?:Chrome|Chromium|Edge?|Edg|OPR|Opera|Firefox|Safari|Version|Electron)/)$",
    re.IGNORECASE,
)
_NOT_PERSONAL: Final = re.compile(r"127\.|\d+\.0\.0\.0$|255\.|(?:\d\.){3}\d$")
_IPV6: Final = re.compile(r"(?<![\w.])[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?![^\W_a-fA-F0-9])")
_IPV6_GROUP: Final = re.compile(r"::|:|[^:]+")
_IPV6_PIECES: Final = 16
_LEAST_COLONS, _MOST_COLONS, _DOTS = 2, 7, 3


def ip_addresses(text: str) -> Iterator[Span]:
    """IP addresses, version 4 and 6.

    Skips addresses that are not personal: loopback, unspecified and broadcast addresses, netmasks,
    and networks such as 10.0.0.0. Skips versions: four numbers of one digit each, and numbers after
    a word such as "version".

    Example:
        >>> text = "from 203.0.113.7 or 2001:db8::7 with version 10.2.30.4 on 127.0.0.1"
        >>> [text[start:end] for start, end in ip_addresses(text)]
        ['2001:db8::7', '203.0.113.7']
    """
    taken: list[Span] = []
    if text.count(":") >= _LEAST_COLONS:
        taken = list(_ipv6(text))
        yield from taken
    if text.count(".") >= _DOTS:
        for found in _IPV4.finditer(text):
            start, end = found.span()
            if _NOT_PERSONAL.match(found[0]) or any(a < end and start < b for a, b in taken):
                continue
            if not _VERSION_BEFORE.search(text[max(0, start - 12) : start]):
                yield start, end


def _ipv6(text: str) -> Iterator[Span]:
    for found in _IPV6.finditer(text):
        token = found[0]
        if token.count(":") < (_LEAST_COLONS if "::" in token else _MOST_COLONS):
            continue
        pieces = [piece.span() for piece in _IPV6_GROUP.finditer(token)]
        first = 0
        while first < len(pieces):
            last = _longest_ipv6(token, pieces, first)
            if last:
                start, end = pieces[first][0], last
                yield found.start() + start, found.start() + end
                while first < len(pieces) and pieces[first][0] < end:
                    first += 1
            else:
                first += 1


def _longest_ipv6(token: str, pieces: list[Span], first: int) -> int:
    """The end of the longest address that starts at this piece; 0 if there is none."""
    start = pieces[first][0]
    for _, end in reversed(pieces[first : first + _IPV6_PIECES]):
        candidate = token[start:end].rstrip(".")
        colons = candidate.count(":")
        if colons >= _LEAST_COLONS and candidate.count("::") <= 1 and _is_ipv6(candidate):
            return start + len(candidate)
    return 0


def _is_ipv6(candidate: str) -> bool:
    try:
        address = IPv6Address(candidate)
    except ValueError:
        return False
    # `Face::Bad` is a name in source code.
    named = candidate.count(":") == _LEAST_COLONS and not any(
        character.isdigit() for character in candidate
    )
    return not (named or address.is_loopback or address.is_unspecified)


# -- IBANs ------------------------------------------------------------------------------------

_IBAN_LENGTHS: Final = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29"
        "ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20"
        "LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29"
        "PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20"
        "YE30",
    )
}
_IBAN: Final = re.compile(r"(?<![^\W_])[A-Za-z]{2}[0-9]{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,29}")
_IBAN_START: Final = re.compile(r"[A-Za-z]{2}[0-9]{2}[ \u00a0-]?[A-Za-z0-9]")
_NOT_ALNUM: Final = re.compile(r"[\W_]+")


def ibans(text: str) -> Iterator[Span]:
    """International bank account numbers with a correct length and checksum.

    Example:
        >>> text = "pay to DE89 3704 0044 0532 0130 00 NOW"
        >>> [text[start:end] for start, end in ibans(text)]
        ['DE89 3704 0044 0532 0130 00']
    """
    if not _IBAN_START.search(text):
        return
    for found in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(found[0][:2].upper(), 0)
        end = start = found.start()
        while length and end < found.end():
            length -= text[end].isalnum()
            end += 1
        after = text[end : end + 1]
        if not length and not after.isalnum() and is_iban(text[start:end]):
            yield start, end


def is_iban(number: str) -> bool:
    """Whether a number has the length and the checksum of an IBAN."""
    plain = _NOT_ALNUM.sub("", number).upper()
    if len(plain) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


# -- numbers that are not personal ------------------------------------------------------------

_PROTECTED: Final = re.compile(
    r"""
    (?<![0-9A-Za-z])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![0-9A-Za-z])  # UUID
    | (?<![\d-])\d{4}-\d\d-\d\d                                           # ISO 8601
        (?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?\s?(?:Z|[+-]\d\d:?\d\d)?)?(?![\d-])
    | (?<![\d./-])\d{1,2}(?P<by>[./-])\d{1,2}(?P=by)\d{4}(?![\d./-]?\d)   # other dates
    | (?<![\d./-])\d{4}[./]\d{1,2}[./]\d{1,2}(?![\d./-]?\d)
    | [+-]\d{1,3}\.\d{3,}[+-]\d{1,3}\.\d{3,}                               # ISO 6709
    | (?<![\d.,])[+-]?(?:0|[1-9]\d{0,2})\.\d{4,}(?!\d|\.\d)               # decimals, coordinates
    | (?<![\d.,])\d{1,3}(?:(?P<mark>[.,'])\d{3})(?:(?P=mark)\d{3})*(?:[.,]\d{1,2})?(?![.,]?\d)  # thousands
    | [$€£¥₹]\s?\d[\d.,]*                                                 # prices
    | (?<![\d.,])\d[\d.,]*+\s?(?:[$€£¥₹%]|(?:USD|EUR|GBP|CHF)\b)
    """,
    re.VERBOSE,
)


def _masked(text: str) -> str:
    """Replace numbers that are not personal by letters. The length does not change."""
    return _PROTECTED.sub(lambda found: "x" * len(found[0]), text)


# -- payment cards ----------------------------------------------------------------------------

_CARD_RUN: Final = re.compile(r"(?<!\w)(?<!\d[.,])\d(?:[ \u00a0.\-]?\d){12,}+(?![^\W\d])(?!,\d)")
_THIRTEEN_DIGITS: Final = re.compile(r"\d(?:[ \u00a0.\-]?\d){12}")
_GROUP: Final = re.compile(r"\d+")
# Issuer prefix, lengths. Without Maestro's shorter numbers: too many other numbers look like them.
_ISSUERS: Final = tuple(
    (re.compile(prefix), frozenset(lengths))
    for prefix, lengths in (
        (r"4", (13, 16, 19)),  # Visa
        (r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
        (r"3[47]", (15,)),  # American Express
        (r"6011|64[4-9]|65|62|81", (16, 17, 18, 19)),  # Discover, UnionPay
        (r"30[0-5]|3[689]", (14, 16, 19)),  # Diners Club
        (r"35(?:2[89]|[3-8])", (16, 17, 18, 19)),  # JCB
        (r"50|5[6-8]|6[0379]", (16, 18, 19)),  # Maestro, RuPay
        (r"220[0-4]", (16, 19)),  # Mir
    )
)
_LEAST_CARD, _MOST_CARD = 13, 19


def cards(text: str) -> Iterator[Span]:
    """Payment card numbers with an issuer's prefix and length and a correct check digit (Luhn).

    Example:
        >>> text = "card 4111 1111 1111 1111 12/27, order 4111 1111 1111 1112"
        >>> [text[start:end] for start, end in cards(text)]
        ['4111 1111 1111 1111']
    """
    if not _THIRTEEN_DIGITS.search(text):
        return
    for run in _CARD_RUN.finditer(_masked(text)):
        groups = [found.span() for found in _GROUP.finditer(run[0])]
        plain = "".join(str(int(c)) for c in run[0] if c.isdecimal())
        offsets = [0]
        for start, end in groups:
            offsets.append(offsets[-1] + end - start)
        first = 0
        while first < len(groups):
            after = _end_of_card(plain, offsets, first)
            if after:
                yield run.start() + groups[first][0], run.start() + groups[after - 1][1]
            first = after or first + 1


def _end_of_card(plain: str, offsets: list[int], first: int) -> int:
    """The group after the longest card number that starts at this group; 0 if there is none."""
    for last in range(min(first + _MOST_CARD, len(offsets) - 1), first, -1):
        size = offsets[last] - offsets[first]
        if size < _LEAST_CARD:
            return 0
        if size <= _MOST_CARD and is_card(plain[offsets[first] : offsets[last]]):
            return last
    return 0


def is_card(digits: str) -> bool:
    """Whether a number has an issuer's prefix and length, and a correct check digit."""
    if not any(len(digits) in lengths and p.match(digits) for p, lengths in _ISSUERS):
        return False
    doubled = sum(map(int, "".join(str(int(digit) * 2) for digit in digits[-2::-2])))
    return len(set(digits)) > 1 and (sum(map(int, digits[-1::-2])) + doubled) % 10 == 0


# -- phone numbers ----------------------------------------------------------------------------

_SEVEN_DIGITS: Final = re.compile(r"\d(?:[^\w\n]{0,4}\d){6}")
_NUMBER: Final = r"[+\uff0b]?\(?\d(?:[ \u00a0()./\-]{0,3}\d){6,14}+(?!\w)"
_INTERNATIONAL: Final = re.compile(
    r"(?<![\w+.,/\-])00([1-9](?:[ \u00a0()./\-]{0,3}\d){7,14}+)(?!\w)"
)
# (212) 555-0123 and 212-555-0123: only phone numbers are written in this way.
_AMERICAN: Final = re.compile(
    r"(?<![\w+.,/\-])(?:\([2-9]\d\d\) ?|[2-9]\d\d[.\-])[2-9]\d\d[.\-]\d{4}(?!\w|[.,/\-]\d)"
)
_PHONE_WORD: Final = (
    r"(?:tele?)?(?:phone|fax|fon)|tel|mobile|mob|cell ?phone|whatsapp|sms|telefono|tel[eé]fono|"
    r"t[eé]l[eé]phone|handy|celular|m[oó]vil|msisdn|(?:call|text|ring|reach) (?:me|us|him|her|them)"
)
_PHONE_CONTEXT: Final = re.compile(
    rf"(?<![<\w])(?:[a-z]+[_-])?(?:{_PHONE_WORD})(?:[_-]?(?:number|no|nr))?\b"
    r"(?:[ \t.:=#\"'(]|\b(?:number|no|nr|is|me|us|at|on|him|her|them|now|home|work|office)\b){0,8}"
    rf"({_NUMBER})",
    re.IGNORECASE,
)
_LEAST_PHONE, _MOST_PHONE = 7, 15


def phones(text: str, library: Any, regions: tuple[str, ...]) -> Iterator[Span]:
    """Phone numbers.

    Args:
        text: The text.
        library: The module `phonenumbers`.
        regions: Countries; their national numbers are found, too.

    Yields:
        Valid international numbers, valid national numbers in the notation of the regions and of
        North America, and numbers after a word such as "phone".
    """
    if not _SEVEN_DIGITS.search(text):
        return
    masked = _masked(text)
    if not _SEVEN_DIGITS.search(masked):
        return
    for found in _PHONE_CONTEXT.finditer(masked):
        if _LEAST_PHONE <= sum(map(str.isdecimal, found[1])) <= _MOST_PHONE:
            yield found.span(1)
    yield from _international(masked, library)
    for region in regions:
        for match in library.PhoneNumberMatcher(masked, region, leniency=library.Leniency.VALID):
            if _is_written_as_phone(match.raw_string, match.number, region, library):
                yield match.start, match.end


def _international(text: str, library: Any) -> Iterator[Span]:
    if "+" in text or "\uff0b" in text:
        for match in library.PhoneNumberMatcher(text, None, leniency=library.Leniency.VALID):
            yield match.start, match.end
    for found in _INTERNATIONAL.finditer(text):
        if _is_phone(f"+{found[1]}", library):
            yield found.span()
    for found in _AMERICAN.finditer(text):
        if _is_phone(f"+1{found[0]}", library):
            yield found.span()


def _is_phone(number: str, library: Any) -> bool:
    try:
        return bool(library.is_valid_number(library.parse(number, None)))
    except library.NumberParseException:
        return False


def _is_written_as_phone(raw: str, number: Any, region: str, library: Any) -> bool:
    """Whether a national number has the separators of its country, or the prefix 0.

    Ten digits without separators may be an order number.
    """
    if raw[0] in "+\uff0b" or (raw[0] == "0" and raw[1:2] != "0"):
        return True
    if raw.isdecimal():
        return False
    groups = _GROUP.findall(raw)
    national = library.format_in_original_format(number, region)
    usual = library.format_number(number, library.PhoneNumberFormat.NATIONAL)
    return groups in (_GROUP.findall(usual), _GROUP.findall(national)) or raw[0] == "("


# -- secrets ----------------------------------------------------------------------------------

_SECRET: Final = re.compile(
    r"""
    (?<![A-Za-z0-9])(?:
      eyJ[\w\-]{4,}(?:\.[\w\-]*){2,4}                                   # JWT
    | (?:sk|rk|pk|ek)-(?=[\w\-]*\d)[\w\-]{16,}                          # OpenAI, Anthropic
    | [A-Za-z]{2,8}_(?:live|test|prod)_(?=\w*\d)[A-Za-z0-9_]{10,}       # Stripe, Unkey
    | gh[opsur]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | glpat-[\w\-]{20,}
    | xox[abeoprs]-[\w\-]{10,} | xapp-[\w\-]{10,}
    | (?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}(?![0-9A-Za-z])
    | AIza[\w\-]{35} | ya29\.[\w\-]{20,} | GOCSPX-[\w\-]{20,}
    | SG\.[\w\-]{16,}\.[\w\-]{16,} | key-[0-9a-f]{32} | shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}
    | dop_v1_[0-9a-f]{64} | hf_[A-Za-z0-9]{30,} | npm_[A-Za-z0-9]{36} | pypi-[\w\-]{50,}
    | whsec_[A-Za-z0-9+/=]{20,} | lin_api_[A-Za-z0-9]{30,} | ntn_[A-Za-z0-9]{40,}
    | \d{8,10}:AA[\w\-]{32,}                                            # Telegram
    )
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----[^-]*(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----)?
    | (?<=hooks\.slack\.com/services/)[A-Z0-9]+/[A-Z0-9]+/\w+
    """,
    re.VERBOSE,
)
_USERINFO: Final = re.compile(r"(?<=://)[^\s/@:\"'<>?#]{0,255}:[^\s/@\"'<>?#]{0,255}(?=@)")
_VALUE: Final = r"[^\s&\"'<>#;,)\]}]"
_NAMES_OF_SECRETS: Final = (
    r"pass(?:wor[dt]|wd|phrase|code)?|pwd|passwort|secret|token|api[_-]?key|app[_-]?key|"
    r"access[_-]?key(?:[_-]?id)?|private[_-]?key|secret[_-]?key|auth(?:orization)?|jwt|bearer|"
    r"credentials?|signature|sig|session(?:[_-]?id)?|sid|otp|pin|cvv|cvc"
)
# `?token=abc` in a URL.
_PARAMETER: Final = re.compile(
    rf"[?&#;](?:[\w.\-]{{0,40}}[_.\-])?(?:{_NAMES_OF_SECRETS})(?:\[\])?=({_VALUE}+)"
    rf"|[?&#;](?:accesstoken|refreshtoken|idtoken|authtoken|jsessionid|phpsessid|sessiontoken|"
    rf"key|code|ticket)=({_VALUE}{{16,}})",
    re.IGNORECASE,
)
# `password = hunter2` in a text.
_ASSIGNED: Final = re.compile(
    r"(?<![<\w?&#;])(?:[A-Za-z0-9]{1,20}[_\-]){0,3}(?:pass(?:wor[dt]|wd|phrase|code)|pwd|secret|token|"
    r"api[ _\-]?key|access[ _\-]?key|private[ _\-]?key|secret[ _\-]?key|credentials?)"
    rf"[\"']?(?:[ ]?[=:][ ]?|[ ]is[ ])[\"']?({_VALUE}{{4,}})",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(
    r"(?<![\w<])(bearer|basic|token|apikey)(?:[ +]|%20)+([A-Za-z0-9._~+/\-]{8,}={0,2})",
    re.IGNORECASE,
)
# Most texts have no secrets. These cheap checks skip the slow patterns for such texts.
_LONG_RUN: Final = re.compile(r"[\w\-.:/]{15}")
_WORDS: Final = ("pass", "pwd", "secret", "token", "key", "credential")
_SCHEMES: Final = ("bearer", "basic", "token", "apikey")
_HAS_DIGIT: Final = re.compile(r"\d")
_LONG_TOKEN: Final = 30


def secrets(text: str) -> Iterator[Span]:
    """API keys, tokens, private keys, and passwords in URLs, query strings and assignments.

    Example:
        >>> text = "https://ann:hunter2@app.test/?token=abc&page=2"
        >>> [text[start:end] for start, end in secrets(text)]
        ['ann:hunter2', 'abc']
    """
    lower = text.lower()
    if _LONG_RUN.search(text) or "-----BEGIN" in text:
        yield from (found.span() for found in _SECRET.finditer(text))
    if "://" in text:
        yield from (found.span() for found in _USERINFO.finditer(text))
    if "=" in text:
        for found in _PARAMETER.finditer(text):
            yield found.span(found.lastindex or 0)
    if any(word in lower for word in _WORDS):
        yield from _assigned(text)
    if any(word in lower for word in _SCHEMES):
        yield from _authorizations(text)


def _authorizations(text: str) -> Iterator[Span]:
    for found in _SCHEME.finditer(text):
        if _is_credential(found[1].lower(), found[2]):
            yield found.span(2)


def _assigned(text: str) -> Iterator[Span]:
    for found in _ASSIGNED.finditer(text):
        value = found[1].rstrip(".!?:")
        if _HAS_DIGIT.search(value) or not value.isalpha():  # "Password: required"
            yield found.start(1), found.start(1) + len(value)


def _is_credential(scheme: str, value: str) -> bool:
    if scheme == "basic":
        try:
            return b":" in base64.b64decode(value + "=" * (-len(value) % 4))
        except (ValueError, binascii.Error):
            return False
    return bool(_HAS_DIGIT.search(value)) or len(value) >= _LONG_TOKEN


# -- kinds of fields --------------------------------------------------------------------------

_FIELDS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (kind, re.compile(rf"(?<![<\w])(?:{words})(?!\w)", re.IGNORECASE))
    for kind, words in (
        (
            "secret",
            (
                r"pass(?:word|code|phrase|wort)|kennwort|mot de passe|contraseña|pin|otp|secret|"
                r"(?:api|private|secret|access|restricted)[ _-]?key|(?:access|auth|api)?[ _-]?token|"
                r"(?:verification|(?:six|6)-digit|security|one-time|login|2fa) code|cvv|cvc"
            ),
        ),
        ("email", r"e-?mail(?: address)?"),
        ("card", r"(?:credit |debit |payment )?card number|card no\.?"),
        ("iban", r"iban"),
        ("phone", r"(?:tele)?phone(?: number)?|mobile(?: number)?|telefon|cell(?:phone)?|fax"),
    )
)
Finder: TypeAlias = Callable[[str], Iterator[Span]]


def field_kind(name: str) -> str | None:
    """The kind of data that is typed into a field of this name; None if unknown.

    Example:
        >>> field_kind("Work email"), field_kind("New password"), field_kind("Search")
        ('email', 'secret', None)
    """
    for kind, words in _FIELDS:
        if words.search(name):
            return kind
    return None
