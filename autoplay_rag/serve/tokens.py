"""Tokens that are bound to one person or one session of one product. They allow reading only.

A token is a JWT, signed with HS256. Its claims:

    iss, aud     "autoplay-rag"
    iat, exp     issued at and expires at, in Unix seconds; at most 24 hours apart
    jti          a random id of the token, for the audit log
    product_id   the product
    user_id      the person, or
    session_id   the session; exactly one of the two

The header's `kid` names the key. Two keys are valid at once, so that keys can be exchanged: a new
key becomes the current one, and the old one stays valid until its tokens have expired.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Self

from autoplay_rag._secrets import secret_from
from autoplay_rag.content.passages import storable
from autoplay_rag.errors import ConfigurationError, MissingExtraError

__all__ = ["SIGNING_VARIABLE", "Bound", "SigningKeys", "mint_token", "seconds_of", "verify_token"]

SIGNING_VARIABLE: Final = "AUTOPLAY_RAG_SIGNING_KEY"
PREVIOUS_VARIABLE: Final = "AUTOPLAY_RAG_SIGNING_KEY_PREVIOUS"
_ALGORITHM: Final = "HS256"
_NAME: Final = "autoplay-rag"
"""Issuer and audience."""
_LEAST_KEY_BYTES: Final = 32
_LONGEST_SECONDS: Final = 24 * 3600.0
_LEEWAY_SECONDS: Final = 5.0
"""How far the clocks of two machines may be apart."""
_LONGEST_ID: Final = 512
_TTL: Final = re.compile(r"(\d{1,9})([smh])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Bound:
    """What a token is bound to.

    Attributes:
        product_id: The product.
        user_id: The person; None if it is bound to a session.
        session_id: The session; None if it is bound to a person.
        token_id: The token's `jti`.
        expires_at: Unix seconds.
    """

    product_id: str
    user_id: str | None
    session_id: str | None
    token_id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys that sign tokens.

    Attributes:
        current: Signs new tokens.
        previous: Tokens that it signed are valid, too; None if there is none.

    Raises:
        ConfigurationError: If a key has fewer than 32 bytes, or both are equal.
    """

    current: str = field(repr=False)
    previous: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for key in (self.current, self.previous):
            if key is not None and len(key.encode()) < _LEAST_KEY_BYTES:
                raise ConfigurationError(
                    f"a signing key must have at least {_LEAST_KEY_BYTES} bytes: make one with "
                    "`openssl rand -hex 32`"
                )
        if self.current == self.previous:
            raise ConfigurationError("the current and the previous signing key are equal")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self | None:
        """Read `AUTOPLAY_RAG_SIGNING_KEY` and `AUTOPLAY_RAG_SIGNING_KEY_PREVIOUS`.

        Each may be in a file that the variable with `_FILE` at the end of its name names.

        Args:
            environ: The variables; by default those of the process.

        Returns:
            The keys; None if there is no current one.

        Raises:
            ConfigurationError: If a key cannot be read or cannot be used.
        """
        current = secret_from(SIGNING_VARIABLE, environ)
        previous = secret_from(PREVIOUS_VARIABLE, environ)
        if current is None:
            if previous is not None:
                raise ConfigurationError(f"{PREVIOUS_VARIABLE} needs {SIGNING_VARIABLE} beside it")
            return None
        return cls(current, previous)

    @property
    def by_kid(self) -> dict[str, str]:
        """The keys by their names in a token's header."""
        return {_kid(key): key for key in (self.current, self.previous) if key is not None}


def mint_token(
    product_id: str,
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    ttl: float | str = "15m",
    keys: SigningKeys | None = None,
) -> str:
    """Sign a token with which a browser or an agent reads the data of one person or one session.

    Call it in your own server, for the person who is logged in there.

    Args:
        product_id: The product.
        user_id: The person. Of a session that several people used, the token shows this person's
            part.
        session_id: The session, whoever used it. Give exactly one of the two.
        ttl: How long it is valid: seconds, or "90s", "15m", "8h"; at most 24 hours.
        keys: Sign it; by default those of the environment.

    Returns:
        The token, for `Authorization: Bearer ...`.

    Raises:
        ConfigurationError: If an argument cannot be used, or there is no signing key.
        MissingExtraError: If PyJWT is not installed.

    Example:
        >>> token = mint_token("acme", user_id="ann", keys=SigningKeys("k" * 32))
        >>> verify_token(token, SigningKeys("k" * 32)).user_id
        'ann'
    """
    if (user_id is None) == (session_id is None):
        raise ConfigurationError("mint_token() needs a user_id or a session_id, and not both")
    bound = {"user_id": user_id} if user_id is not None else {"session_id": session_id}
    claims: dict[str, Any] = {"product_id": product_id, **bound}
    for name, value in claims.items():
        if not _is_id(value):
            raise ConfigurationError(
                f"{name} must be a text of 1 to {_LONGEST_ID} characters, without NUL"
            )
    seconds = seconds_of("ttl", ttl)
    keys = keys or SigningKeys.from_environment()
    if keys is None:
        raise ConfigurationError(
            f"there is no signing key: set {SIGNING_VARIABLE}, to the same value as for the server"
        )
    now = int(time.time())
    claims |= {"iss": _NAME, "aud": _NAME, "jti": secrets.token_hex(8)}
    claims |= {"iat": now, "exp": now + int(seconds)}
    return str(_jwt().encode(claims, keys.current, _ALGORITHM, headers={"kid": _kid(keys.current)}))


def verify_token(token: str, keys: SigningKeys) -> Bound | None:
    """Return what a token is bound to; None if it is not valid.

    Args:
        token: The token.
        keys: The keys that may have signed it.
    """
    jwt = _jwt()
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        key = keys.by_kid.get(kid) if isinstance(kid, str) else None
        if key is None:
            return None
        claims = jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            audience=_NAME,
            issuer=_NAME,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "aud", "iss", "jti"], "strict_aud": True},
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
        return None
    return _bound(claims)


def seconds_of(name: str, value: float | str) -> float:
    """Convert the lifetime of a token to seconds.

    Args:
        name: The name of the argument, for the error message.
        value: Seconds, or "90s", "15m", "8h".

    Raises:
        ConfigurationError: If it is not between one second and 24 hours.

    Example:
        >>> seconds_of("ttl", "15m"), seconds_of("ttl", 90)
        (900.0, 90.0)
    """
    seconds: float | None = None
    if isinstance(value, str):
        if found := _TTL.fullmatch(value.strip()):
            seconds = float(int(found[1]) * _UNITS[found[2]])
    elif not isinstance(value, bool):
        seconds = float(value)
    if seconds is None or not 1 <= seconds <= _LONGEST_SECONDS:
        raise ConfigurationError(
            f"{name} must be between one second and 24 hours, such as '15m' or 900, not {value!r}"
        )
    return seconds


def _bound(claims: Mapping[str, Any]) -> Bound | None:
    product, user, session = (claims.get(n) for n in ("product_id", "user_id", "session_id"))
    one = (user is None) != (session is None)
    if not (one and _is_id(product) and _is_id(user if session is None else session)):
        return None
    issued, expires, number = claims["iat"], claims["exp"], claims["jti"]
    numbers = all(
        isinstance(at, int | float) and not isinstance(at, bool) for at in (issued, expires)
    )
    if not numbers or not 0 < expires - issued <= _LONGEST_SECONDS or not isinstance(number, str):
        return None
    return Bound(str(product), user, session, number[:64], float(expires))


def _is_id(value: object) -> bool:
    # The journal replaces NUL and lone surrogates: two ids would become one.
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID:
        return False
    return storable(value) == value


def _kid(key: str) -> str:
    return blake2b(key.encode(), digest_size=8, person=b"autoplay-rag kid").hexdigest()


def _jwt() -> Any:
    try:
        import jwt
    except ModuleNotFoundError:
        raise MissingExtraError("mint_token()", "serve") from None
    return jwt
