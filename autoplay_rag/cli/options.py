"""Options shared by several commands, and the interpretation of their values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag.cli.config import Config, load_config
from autoplay_rag.cli.console import say, stream_closed
from autoplay_rag.cli.replica import ASK_A_SERVER, check_file
from autoplay_rag.connector.client import TOKEN_VARIABLE
from autoplay_rag.errors import ConfigurationError, StoreError
from autoplay_rag.stores.chroma import ChromaStore
from autoplay_rag.stores.chroma.copies import DATABASE
from autoplay_rag.stores.named import folder_of, make_store
from autoplay_rag.stores.postgres import PgVectorStore

__all__ = [
    "DEFAULT_EMBEDDER",
    "DEFAULT_STORE",
    "URL_VARIABLE",
    "USAGE",
    "AdoptOption",
    "AllowHostOption",
    "CollectionOption",
    "EmbedderOption",
    "IdleOption",
    "JournalOption",
    "Place",
    "ProductOption",
    "RebuildOption",
    "SinceOption",
    "StoreOption",
    "TokenOption",
    "UntilOption",
    "UrlArgument",
    "WrittenJournalOption",
    "default_journal",
    "find_place",
    "has_shared_journal",
    "help_without_subcommand",
    "journal_file",
]

DEFAULT_STORE = "chroma:./chroma"
DEFAULT_EMBEDDER = "local"

UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="The stream: https://.../stream/PRODUCT")
]
TokenOption = Annotated[
    str, typer.Option(help=f"The product's token; by default the value of {TOKEN_VARIABLE}.")
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        metavar="STORE",
        help="The vector store: chroma:PATH, or postgresql://USER@HOST/DATABASE without a password "
        f"(see the variable AUTOPLAY_RAG_POSTGRES_DSN); by default {DEFAULT_STORE}.",
    ),
]
CollectionOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The collection in the store.")
]
JournalOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=check_file,
        help="The journal's file; by default the one in the settings file, or the one beside the "
        "store. A pipeline may be writing it.",
    ),
]
WrittenJournalOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=check_file,
        help="The file that records received payloads; by default beside the store.",
    ),
]
RebuildOption = Annotated[
    bool,
    typer.Option(
        "--rebuild",
        help="Embed everything in the journal again, after the store was emptied or replaced, or for "
        "another embedder.",
    ),
]
AdoptOption = Annotated[
    bool,
    typer.Option("--adopt", help="Add the content of a store of another journal to this journal."),
]
AllowHostOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        envvar="AUTOPLAY_RAG_ALLOW_HOST",
        help="A host name under which clients reach the server, besides loopback; repeatable. "
        "The variable takes several, with spaces between them.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Only what ended then or later: 7d, 12h, 2026-03-01, or ISO 8601."
    ),
]
UntilOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only what started then or earlier.")
]
ProductOption = Annotated[str | None, typer.Option(help="Only this product.")]
EmbedderOption = Annotated[
    str | None,
    typer.Option(
        metavar="local|local:int8|openai:MODEL",
        help="The embedder: the bundled model (local, the default; local:int8 is faster and has "
        "vectors of its own), or a model of OpenAI (needs OPENAI_API_KEY).",
    ),
]


def _seconds(value: float | None) -> float | None:
    # Not `min=0` in the option: it accepts NaN.
    if value is not None and not value >= 0:
        raise typer.BadParameter(f"must be 0 or more seconds, not {value}")
    return value


IdleOption = Annotated[
    float | None,
    typer.Option(
        callback=_seconds, help="Stop after this many seconds without a payload; by default never."
    ),
]

URL_VARIABLE = "AUTOPLAY_RAG_URL"
"""The variable with the address of a server that answers for the commands."""

USAGE = 2
"""The exit code for wrong usage."""


def help_without_subcommand(context: typer.Context) -> None:
    """Print a group's help and exit, if no subcommand was given."""
    if context.invoked_subcommand is None:
        try:
            say(context.get_help())
        except (BrokenPipeError, SystemExit):
            # Typer may print the help through Rich, which raises SystemExit for a closed pipe.
            stream_closed()
        raise typer.Exit(USAGE)


def default_journal(store: Path | None) -> Path:
    """Return the default journal file for a store.

    Args:
        store: The folder of the store; None for PostgreSQL.

    Raises:
        ConfigurationError: If the store has no folder.

    Example:
        >>> default_journal(Path("data/chroma")).as_posix()
        'data/chroma-journal.db'
    """
    if store is None:
        raise ConfigurationError(
            "a store in PostgreSQL has no folder for the journal: name the file with --journal, or "
            "as `journal` in the settings file"
        )
    if store.name in ("", ".."):  # "." and ".." have no name of their own
        store = store.resolve()
    return store.parent / f"{store.name}-journal.db"


def has_shared_journal(file: Config) -> bool:
    """Whether the settings name a journal in PostgreSQL. A server answers for it.

    Raises:
        ConfigurationError: If they do, and the environment does not name the server.
    """
    if not file.get("postgres"):
        return False
    if not os.environ.get(URL_VARIABLE, "").strip():
        raise ConfigurationError(ASK_A_SERVER)
    return True


def journal_file(journal: Path | None) -> Path:
    """Return the journal for a command that reads the file itself.

    Args:
        journal: The journal; None if it is in PostgreSQL.

    Raises:
        ConfigurationError: If it is in PostgreSQL.
    """
    if journal is None:
        raise ConfigurationError(
            "the settings name a journal in PostgreSQL, and this command needs a file: name it with "
            "--journal"
        )
    return journal


@dataclass(frozen=True, slots=True)
class Place:
    """Where a journal and its store are.

    Attributes:
        file: The settings.
        journal: The journal's file; None if it is in PostgreSQL, where a server answers.
        store: The name of the store.
        collection: The collection in it; None for the default.
    """

    file: Config
    journal: Path | None
    store: str
    collection: str | None

    @property
    def journal_file(self) -> Path:
        """The journal, for a command that reads the file itself; see the function."""
        return journal_file(self.journal)

    @property
    def folder(self) -> Path | None:
        """The folder of the store; None for PostgreSQL."""
        return folder_of(self.store)

    def make_store(self) -> ChromaStore | PgVectorStore:
        """Make the store."""
        return make_store(self.store, self.collection)

    def has_store(self) -> bool:
        """Whether there is a store. PostgreSQL answers for itself when it is opened."""
        # Chroma would create its folder.
        return self.folder is None or (self.folder / DATABASE).is_file()

    def check_store(self) -> None:
        """Check that there is a store.

        Raises:
            StoreError: If the folder has none.
        """
        if not self.has_store():
            raise StoreError(f"no Chroma store at {self.folder}; check the path")


def find_place(
    config: Path | None,
    *,
    journal: Path | None,
    store: str | None,
    collection: str | None = None,
) -> Place:
    """Find journal and store from options, then settings, then defaults.

    Raises:
        ConfigurationError: If the settings file or a value in it cannot be used.
    """
    file = load_config(config)
    if journal is None and store is None and has_shared_journal(file):
        return Place(file, None, file.get("postgres"), collection)
    with file.explaining(["store"] if store is not None else []):
        name = store or file.store or DEFAULT_STORE
        journal = journal or file.journal or default_journal(folder_of(name))
    return Place(file, journal.expanduser(), name, collection or file.get("collection"))
