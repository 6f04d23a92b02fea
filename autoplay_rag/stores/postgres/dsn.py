"""Connection strings: where the password may come from, and what may be shown of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from autoplay_rag._secrets import secret_from
from autoplay_rag.errors import ConfigurationError, MissingExtraError

__all__ = ["CONNECTION_DEFAULTS", "VARIABLE", "is_dsn", "parameters_of", "place_of", "public_dsn"]

VARIABLE = "AUTOPLAY_RAG_POSTGRES_DSN"
"""The variable with a complete connection string. With `_FILE` it names a file that has one."""

CONNECTION_DEFAULTS = {
    "application_name": "autoplay-rag",
    "connect_timeout": "10",
    # A server that vanished without a word is noticed within a minute.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
"""What every connection of this package says, unless the user says otherwise."""

_PREFIXES = ("postgresql:", "postgres:")


def is_dsn(value: str) -> bool:
    """Whether a name of a store is a PostgreSQL address.

    Example:
        >>> is_dsn("postgresql://db.test/app"), is_dsn("postgresql:"), is_dsn("chroma:data")
        (True, True, False)
    """
    return value.startswith(_PREFIXES)


def parameters_of(dsn: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the parameters of a connection, by libpq's names.

    What the string does not say comes from `AUTOPLAY_RAG_POSTGRES_DSN`, or from the file that
    `AUTOPLAY_RAG_POSTGRES_DSN_FILE` names, unless the two name different servers, databases or
    users. What is missing then comes from libpq's own variables and files (`PGPASSWORD`,
    `~/.pgpass`).

    Args:
        dsn: `postgresql://user@host/database`, or `key=value` pairs. `postgresql:` says nothing.
        environ: The variables; by default those of the process.

    Raises:
        ConfigurationError: If a string cannot be parsed. The message does not quote it.
        MissingExtraError: If psycopg is not installed.

    Example:
        >>> env = {"AUTOPLAY_RAG_POSTGRES_DSN": "postgresql://ann:s3cret@db.test/app"}
        >>> sorted(parameters_of("postgresql://db.test/app", env))
        ['dbname', 'host', 'password', 'user']
        >>> sorted(parameters_of("postgresql://other.test/app", env))
        ['dbname', 'host']
    """
    given = _parsed(dsn, "the connection string")
    text = secret_from(VARIABLE, os.environ if environ is None else environ)
    if text is None:
        return given
    known = _parsed(text, VARIABLE)
    # A password is sent only to the server that it was given for.
    same = all(known.get(name) == given[name] for name in _place(given))
    return {**known, **given} if same else given


def public_dsn(dsn: str) -> str:
    """Return a connection string that may be shown: one without a password.

    Raises:
        ConfigurationError: If it has a password, which other users of the machine could read in
            the list of processes.

    Example:
        >>> public_dsn("postgresql://ann@db.test/app")
        'postgresql://ann@db.test/app'
    """
    given = _parsed(dsn, "the connection string")
    if any(name in given for name in ("password", "sslpassword")):
        raise ConfigurationError(
            "a password in the address of the store can be read by others in the list of "
            f"processes: leave it out, and put the whole address into {VARIABLE} or into a file "
            f"that {VARIABLE}_FILE names, or use PGPASSWORD or ~/.pgpass"
        )
    return dsn


def place_of(parameters: Mapping[str, str]) -> str:
    """Return server and database in a form for messages, without a secret.

    Example:
        >>> place_of({"host": "db.test", "dbname": "app", "password": "s3cret"})
        'app on db.test'
    """
    server = parameters.get("host") or parameters.get("hostaddr") or "the default host"
    port = parameters.get("port")
    database = parameters.get("dbname") or "the default database"
    return f"{database} on {server}{f':{port}' if port else ''}"


def _place(parameters: Mapping[str, str]) -> list[str]:
    return [name for name in ("host", "hostaddr", "port", "dbname", "user") if name in parameters]


def _parsed(dsn: str, owner: str) -> dict[str, str]:
    if not find_spec("psycopg"):
        raise MissingExtraError("PgVectorStore", "postgres")
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    if dsn in _PREFIXES:
        return {}
    try:
        # libpq would stop reading at a NUL. No string has the form of a single slash.
        found = conninfo_to_dict("/" if "\0" in dsn else dsn)
    except (psycopg.Error, ValueError):
        # The message of libpq may quote the password.
        raise ConfigurationError(
            f"{owner} cannot be parsed: it must have the form postgresql://user@host:port/database "
            "(special characters in a password as %XX), or key=value pairs"
        ) from None
    return {name: str(value) for name, value in found.items() if value is not None}
