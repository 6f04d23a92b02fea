"""`serve --postgres`: what a replica is, from options, settings and the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import typer

from autoplay_rag._checks import check_choice
from autoplay_rag.cli.config import Config
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores.postgres.dsn import is_dsn, public_dsn

__all__ = [
    "ASK_A_SERVER",
    "PostgresOption",
    "Replica",
    "Role",
    "RoleOption",
    "check_file",
    "check_no_postgres",
    "replica_of",
]

Role: TypeAlias = Literal["all", "serve", "ingest"]

PostgresOption = Annotated[
    str | None,
    typer.Option(
        metavar="DSN",
        help="The PostgreSQL database that is store and journal, for any number of servers: "
        "postgresql://USER@HOST/DATABASE without a password, or postgresql: to take all from "
        "AUTOPLAY_RAG_POSTGRES_DSN or AUTOPLAY_RAG_POSTGRES_DSN_FILE. Instead of --store and --journal.",
    ),
]
RoleOption = Annotated[
    str | None,
    typer.Option(
        metavar="all|serve|ingest",
        help="What this server does, beside others of --postgres: everything; serve: it takes pushes "
        "and answers, and leaves reading sources, embedding and storing to others; ingest: it reads, "
        "embeds and stores, and answers health checks and metrics only.",
    ),
]

ASK_A_SERVER: Final = (
    "the journal is in PostgreSQL, and this command reads a file: set AUTOPLAY_RAG_URL and "
    "AUTOPLAY_RAG_KEY to ask one of its servers (start one with `autoplay-rag serve --postgres`)"
)


@dataclass(frozen=True, slots=True)
class Replica:
    """One of several servers of a database.

    Attributes:
        dsn: The address of the database, without a password.
        role: What it does.
    """

    dsn: str
    role: Role

    @property
    def reads(self) -> bool:
        """Whether it reads sources, embeds and stores."""
        return self.role != "serve"


def replica_of(
    dsn: str | None, role: str | None, file: Config, *, others: dict[str, Any]
) -> Replica | None:
    """Return the replica that the options and the settings describe; None without `postgres`.

    Args:
        dsn: The option.
        role: The option.
        file: The settings.
        others: The options that `--postgres` replaces, by name.

    Raises:
        ConfigurationError: If they contradict each other, or the address cannot be used.
    """
    given = [name for name, value in others.items() if value]
    if dsn is not None and given:
        raise ConfigurationError(f"--postgres is store and journal: leave out --{given[0]}")
    if dsn is None and not given and (dsn := file.get("postgres")) and file.journal:
        # A relay may have both: its journal is the outbox.
        raise ConfigurationError("journal must be left out: postgres is store and journal")
    role = role or file.get("role") or "all"
    check_choice("role", role, get_args(Role))
    if dsn is None:
        if role != "all":
            raise ConfigurationError(
                "role needs --postgres: without it there is no other server to do the rest"
            )
        return None
    if not is_dsn(dsn):
        # Not quoted: it may have a password.
        raise ConfigurationError("postgres must have the form postgresql://USER@HOST/DATABASE")
    return Replica(public_dsn(dsn), role)  # type: ignore[arg-type]  # checked above


def check_file(journal: Path | None) -> Path | None:
    """Return the path of a journal's file.

    Raises:
        ConfigurationError: If it is an address of PostgreSQL.
    """
    if journal is not None and is_dsn(os.fspath(journal)):
        raise ConfigurationError(ASK_A_SERVER)
    return journal


def check_no_postgres(file: Config) -> None:
    """Check that the settings leave the store to a command that makes a pipeline of its own.

    Raises:
        ConfigurationError: If they name a database that several servers share.
    """
    if file.get("postgres"):
        raise ConfigurationError(
            "postgres is for `autoplay-rag serve`: use `autoplay-rag serve --role ingest` instead of "
            "this command, or name another --store and --journal"
        )
