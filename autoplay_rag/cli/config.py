"""The settings file of the command, `autoplay-rag.toml`.

The keys are options of the command and simple settings of `IngestPipeline`. Errors name the file,
the line and the key, but never a value, because it may be a secret.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores.postgres.dsn import is_dsn

__all__ = [
    "DEFAULT_CONFIG",
    "PIPELINE_KEYS",
    "Config",
    "ConfigOption",
    "Pull",
    "Stream",
    "load_config",
]

DEFAULT_CONFIG: Final = "autoplay-rag.toml"
CONFIG_VARIABLE: Final = "AUTOPLAY_RAG_CONFIG"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        envvar=CONFIG_VARIABLE,
        help=f"The settings file; by default {DEFAULT_CONFIG} in this folder, if it exists.",
    ),
]

_Where: TypeAlias = tuple[str | int, ...]

_TEXT: Final = "text"
_VALUE: Final = 'text or { env = "NAME" }'
_NUMBER: Final = "a number"
_COUNT: Final = "a whole number"
_FLAG: Final = "true or false"
_DAYS: Final = "a number, or { actions = 7, summary = 30, chat = 30 }"
_USERS: Final = '"asked" or a list of texts'
_TEXTS: Final = "a list of texts"

PIPELINE_KEYS: Final[Mapping[str, str]] = {
    "batch_window": _NUMBER,
    "max_batch_actions": _COUNT,
    "durability": _TEXT,
    "journal_max_bytes": _COUNT,
    "keep_payloads": _FLAG,
    "include_email": _FLAG,
    "redact": _TEXT,
    "embed_concurrency": _COUNT,
    "max_attempts": _COUNT,
    "max_embed_tokens_per_day": _COUNT,
    "remembered_vectors": _COUNT,
    "drain_timeout": _NUMBER,
    "retention_days": _DAYS,
    "remember_keys_days": _NUMBER,
    "summaries": _TEXT,
    "erasure_register": _TEXT,
}
"""Settings passed to `IngestPipeline` under the same name."""
_STREAM_KEYS: Final[Mapping[str, str]] = {"url": _VALUE, "token": _VALUE}
_PULL_KEYS: Final[Mapping[str, str]] = {
    "url": _VALUE,
    "product_id": _VALUE,
    "token": _VALUE,
    "users": _USERS,
    "interval": _NUMBER,
}
_KEYS: Final[Mapping[str, str]] = {
    **_STREAM_KEYS,
    "webhooks": _TEXTS,
    "store": _TEXT,
    "collection": _TEXT,
    "embedder": _TEXT,
    "journal": _TEXT,
    "postgres": _TEXT,
    "role": _TEXT,
    "kafka": _TEXT,
    "topic": _TEXT,
    "group": _TEXT,
    "idle_seconds": _NUMBER,
    **PIPELINE_KEYS,
}
_STREAMS: Final = "streams"
_PULLS: Final = "pulls"
_KAFKA_CLIENT: Final = "kafka_client"
_FOR_ONE_START: Final = ("rebuild", "adopt")


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream to read.

    Attributes:
        url: The URL.
        token: The token; "" if the file has none. Not part of the repr.
        where: File and line, for errors; "" if the stream is not from a file.
    """

    url: str
    token: str = field(default="", repr=False)
    where: str = ""


@dataclass(frozen=True, slots=True)
class Pull:
    """One pull endpoint to ask.

    Attributes:
        url: The URL.
        product_id: The product; "" if the file has none.
        token: The token; "" if the file has none. Not part of the repr.
        users: Whom to watch: "asked", or user ids.
        interval: Seconds between two pulls of one user; None for the default.
        where: File and line, for errors; "" if it is not from a file.
    """

    url: str
    product_id: str = ""
    token: str = field(default="", repr=False)
    users: str | tuple[str, ...] = ""
    interval: float | None = None
    where: str = ""


class Config:
    """The validated settings of one file.

    Args:
        path: The file; None if there is none. Then no key is set.
        text: The content of the file.

    Raises:
        ConfigurationError: If the text is not TOML, a key is unknown, or a value has the wrong
            type.
    """

    def __init__(self, path: Path | None = None, text: str = "") -> None:
        self.path = path
        self._text = text
        try:
            self._values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        self._check((), self._values, {**_KEYS, _STREAMS: "", _PULLS: "", _KAFKA_CLIENT: ""})
        if not isinstance(self._values.get(_KAFKA_CLIENT, {}), dict):
            raise self._error((_KAFKA_CLIENT,), f"write [{_KAFKA_CLIENT}] above the properties")
        tables = self._tables(_STREAMS, "stream", _STREAM_KEYS)
        self._tables(_PULLS, "pull", _PULL_KEYS)
        if tables and (both := _STREAM_KEYS.keys() & self._values.keys()):
            key = min(both)
            raise self._error((key,), f"{key} belongs below [[{_STREAMS}]] if the file has one")
        if {"postgres", "store"} <= self._values.keys():
            raise self._error(("store",), "postgres is store and journal: leave out store")
        if "token" in self._values and "url" not in self._values:
            raise self._error(("token",), "a token needs a url beside it")

    def _tables(self, name: str, one: str, keys: Mapping[str, str]) -> list[dict[str, Any]]:
        tables = self._values.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._error((name,), f"write [[{name}]] above each {one}")
        for n, table in enumerate(tables):
            self._check((name, n), table, keys)
            if "url" not in table:
                raise self._error((name, n), f"a {one} needs a url")
        return tables

    def get(self, name: str) -> Any:
        """Return the value of a top-level key; None if it is not set."""
        return self._values.get(name)

    @property
    def pipeline(self) -> dict[str, Any]:
        """The settings for `IngestPipeline`."""
        found = {name: value for name, value in self._values.items() if name in PIPELINE_KEYS}
        if (register := self.erasure_register) is not None:
            found["erasure_register"] = register
        return found

    @property
    def erasure_register(self) -> Path | None:
        """The file with all requests to forget. Relative like `journal`."""
        path = self.get("erasure_register")
        return None if path is None else self._beside(path)

    @property
    def journal(self) -> Path | None:
        """The journal's file. A relative path is relative to the folder of the settings file."""
        path = self.get("journal")
        if path is not None and is_dsn(path):
            raise self._error(
                ("journal",),
                "journal names a file: write postgres = ... for store and journal in one",
            )
        return None if path is None else self._beside(path)

    @property
    def store(self) -> str | None:
        """The store. A relative path in it is relative to the folder of the settings file."""
        store = self.get("store")
        if store is None:
            return None
        kind, colon, path = str(store).partition(":")
        return f"{kind}{colon}{self._beside(path)}" if kind == "chroma" and path else str(store)

    def streams(self, urls: Collection[str] = (), *, tokens: bool = True) -> list[Stream]:
        """Return the streams, with the values of the environment variables that they name.

        Args:
            urls: Return only the streams with these URLs; by default all.
            tokens: Whether to include the tokens.

        Raises:
            ConfigurationError: If a required variable is not set.
        """
        tables: list[tuple[_Where, Mapping[str, Any]]]
        if "url" in self._values:
            tables = [((), self._values)]
        else:
            tables = [((_STREAMS, n), t) for n, t in enumerate(self._values.get(_STREAMS, []))]
        found = []
        for where, table in tables:
            if urls and not (isinstance(table["url"], str) or table["url"]["env"] in os.environ):
                continue
            url = self._resolved((*where, "url"), table["url"])
            if urls and url not in urls:
                continue
            token = self._resolved((*where, "token"), table.get("token", "")) if tokens else ""
            line = _line(self._text, (*where, "url"))
            found.append(Stream(url, token, f"{self.path}, line {line}"))
        return found

    def pulls(self) -> list[Pull]:
        """Return the pull endpoints, with the values of the environment variables that they name.

        Raises:
            ConfigurationError: If a required variable is not set.
        """
        found = []
        for n, table in enumerate(self._values.get(_PULLS, [])):
            where: _Where = (_PULLS, n)
            text = {
                key: self._resolved((*where, key), table[key])
                for key in ("url", "product_id", "token")
                if key in table
            }
            users = table.get("users", "")
            found.append(
                Pull(
                    **text,
                    users=users if isinstance(users, str) else tuple(users),
                    interval=table.get("interval"),
                    where=f"{self.path}, line {_line(self._text, (*where, 'url'))}",
                )
            )
        return found

    @property
    def kafka_client(self) -> dict[str, Any]:
        """The properties of Kafka's clients, with the values of the variables that they name.

        `security.protocol = "SSL"` is a table in a table in TOML, and one property here.

        Raises:
            ConfigurationError: If a variable is not set.
        """
        return dict(self._properties((_KAFKA_CLIENT,), self._values.get(_KAFKA_CLIENT, {})))

    def _properties(self, where: _Where, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in table.items():
            here = (*where, name)
            if not isinstance(value, dict):
                yield ".".join(map(str, here[1:])), value
            elif _is(value, _VALUE):
                yield ".".join(map(str, here[1:])), self._resolved(here, value)
            else:
                yield from self._properties(here, value)

    @contextmanager
    def explaining(self, given: Iterable[str] = ()) -> Iterator[None]:
        """Add the file and line to configuration errors about a value of this file.

        Args:
            given: Names of settings from the command line, which the file did not set.
        """
        try:
            yield
        except ConfigurationError as error:
            name = str(error).split(maxsplit=1)[0].removeprefix("--").replace("-", "_")
            if name not in self._values or name in given:
                raise
            raise self._error((name,), str(error)) from None

    def _resolved(self, where: _Where, value: str | dict[str, str]) -> str:
        if isinstance(value, str):
            return value
        name = value["env"]
        found = os.environ.get(name)
        if not found:
            raise self._error(where, f"the environment variable {name} is not set")
        return found

    def _beside(self, path: str) -> Path:
        assert self.path is not None
        return self.path.parent / Path(path).expanduser()

    def _check(self, where: _Where, table: Mapping[str, Any], keys: Mapping[str, str]) -> None:
        for name, value in table.items():
            if name not in keys:
                raise self._error((*where, name), _unknown(name, keys))
            if keys[name] and not _is(value, keys[name]):
                raise self._error((*where, name), f"{name} must be {keys[name]}")

    def _error(self, where: _Where, message: str) -> ConfigurationError:
        return ConfigurationError(f"{self.path}, line {_line(self._text, where)}: {message}")


def load_config(path: Path | None = None) -> Config:
    """Read the settings file.

    Args:
        path: The file; None for `autoplay-rag.toml` in the working folder, if it exists.

    Raises:
        ConfigurationError: As for `Config`, or if the file is not UTF-8.
        OSError: If the file cannot be read.
    """
    if path is None:
        path = Path(DEFAULT_CONFIG)
        if not path.is_file():
            return Config()
    try:
        return Config(path, path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8: save it as UTF-8") from None


def _is(value: object, kind: str) -> bool:
    check = _CHECKS.get(kind)
    if check is not None:
        return check(value)
    if isinstance(value, str):
        return bool(value)
    return (
        kind == _VALUE
        and isinstance(value, dict)
        and value.keys() == {"env"}
        and isinstance(value["env"], str)
        and bool(value["env"])
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_days(value: object) -> bool:
    return all(map(_is_number, value.values() if isinstance(value, dict) else [value]))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


_CHECKS: Final[Mapping[str, Callable[[object], bool]]] = {
    _FLAG: lambda value: isinstance(value, bool),
    _COUNT: _is_count,
    _NUMBER: _is_number,
    _DAYS: _are_days,
    _TEXTS: _are_texts,
    _USERS: lambda value: value == "asked" or _are_texts(value),
}


def _unknown(name: str, keys: Mapping[str, str]) -> str:
    if name in _FOR_ONE_START:
        return f"{name} is for one start only: use --{name} on the command line"
    close = difflib.get_close_matches(name.replace("-", "_"), keys, 1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(keys)}"
    return f"unknown key {name!r}; {hint}"


def _line(text: str, where: _Where) -> int:
    """Return the line on which a value begins, counted from 1.

    This parses the first line, the first two lines, and so on. The value begins after the last
    prefix that parses and does not contain it.
    """
    lines = text.splitlines(keepends=True)
    start = 0
    for end in range(1, len(lines) + 1):
        try:
            found: Any = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        for step in where:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                start = end
                break
        else:
            return start + 1
    return start + 1
