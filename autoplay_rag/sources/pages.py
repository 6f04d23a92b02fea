"""Names of pages, from their URLs. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from autoplay_rag._text_cache import forgets
from autoplay_rag.sources.values import text_of

__all__ = ["canonical", "page_words", "url_of"]

_LONGEST_URL: Final = 2000
_ID: Final = re.compile(
    r"[0-9]+"
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|(?=[0-9a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,}"
    r"|[a-z]{1,8}[_-](?=[a-z0-9]*[0-9])[a-z0-9]+"  # r_3021, cus_9s6XK, INV-0042
    r"|[a-z]{1,3}[0-9]{3,}"
    r"|(?=[a-z]*[0-9])(?=[0-9]*[a-z])[a-z0-9_~=-]{16,}",
    re.IGNORECASE,
)
_WORDS_BETWEEN: Final = re.compile(r"[-_+.\s]+")


def url_of(*values: Any) -> str:
    """The first URL among values, without a user name and password; "" if there is none.

    Example:
        >>> url_of(None, "https://ann:pw@app.test/reports?q=1")
        'https://app.test/reports?q=1'
    """
    for value in values:
        if (
            isinstance(value, str)
            and 0 < len(value) <= _LONGEST_URL
            and (url := text_of(value, _LONGEST_URL))
        ):
            scheme, colon, rest = url.partition("://")
            authority, slash, path = rest.partition("/")
            return f"{scheme}{colon}{authority.rpartition('@')[2]}{slash}{path}" if colon else url
    return ""


@lru_cache(maxsize=4096)
def canonical(url: str) -> str:
    """The URL without its query, and with `:id` where a segment of the path is an id.

    The path of a router in the fragment (`#/reports`) is kept.

    Example:
        >>> canonical("https://app.test/reports/8812/edit?tab=2")
        'https://app.test/reports/:id/edit'
        >>> canonical("https://app.test/#/team/u_044")
        'https://app.test/#/team/:id'
    """
    main, _, fragment = url.partition("#")
    main = _without_ids(main.partition("?")[0])
    route = fragment.partition("?")[0]
    return f"{main}#{_without_ids(route)}" if route.startswith(("/", "!/")) else main


forgets(canonical.cache_clear)


def page_words(url: str) -> str:
    """The page in words, for one without a title: the last segment that is not an id.

    Example:
        >>> page_words("https://app.test/settings/api-keys/key_17"), page_words("https://app.test/")
        ('Api keys', 'app.test')
    """
    place = canonical(url)
    fragment = place.partition("#")[2].lstrip("!")
    try:
        parts = urlsplit(place)
    except ValueError:
        return ""
    for path in (fragment, parts.path):
        for segment in reversed(path.split("/")):
            if segment and not segment.startswith(":"):
                words = " ".join(_WORDS_BETWEEN.split(unquote(segment))).strip()
                if any(char.isalpha() for char in words):
                    return text_of(words[0].upper() + words[1:])
    return text_of(parts.netloc)


def _without_ids(path: str) -> str:
    scheme, colon, rest = path.partition("://")
    if not colon:
        scheme, rest = "", path
    first, *segments = rest.split("/")
    kept = [":id" if _is_id(segment) else segment for segment in segments]
    return f"{scheme}{colon}{'/'.join([first, *kept])}"


def _is_id(segment: str) -> bool:
    # Whoever is in the path is a person: an address names one.
    return "@" in segment or "%40" in segment or _ID.fullmatch(segment) is not None
