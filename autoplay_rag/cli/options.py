"""Options that several commands have, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoplay_rag.cli.console import say, stream_closed
from autoplay_rag.connector.client import TOKEN_VARIABLE
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores.chroma import ChromaStore

__all__ = [
    "DEFAULT_EMBEDDER",
    "DEFAULT_STORE",
    "USAGE",
    "CollectionOption",
    "EmbedderOption",
    "IdleOption",
    "StoreOption",
    "TokenOption",
    "UrlArgument",
    "chroma_path",
    "default_journal",
    "help_if_alone",
    "make_embedder",
    "make_store",
]

DEFAULT_STORE = "chroma:./chroma"
DEFAULT_EMBEDDER = "local"

UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="The stream: https://.../stream/PRODUCT")
]
TokenOption = Annotated[
    str, typer.Option(help=f"The product's token; by default what {TOKEN_VARIABLE} holds.")
]
StoreOption = Annotated[
    str | None,
    typer.Option(metavar="chroma:PATH", help=f"The vector store; by default {DEFAULT_STORE}."),
]
CollectionOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The collection in the store.")
]
EmbedderOption = Annotated[
    str | None,
    typer.Option(
        metavar="local|openai:MODEL",
        help="What turns text into vectors: the bundled model (local, the default), or OpenAI's "
        "(OPENAI_API_KEY).",
    ),
]


def _seconds(value: float | None) -> float | None:
    # Not `min=0` of the option: it lets NaN pass.
    if value is not None and not value >= 0:
        raise typer.BadParameter(f"{value} is not 0 or more seconds")
    return value


IdleOption = Annotated[
    float | None,
    typer.Option(
        callback=_seconds, help="End when nothing came for so many seconds; by default never."
    ),
]

USAGE = 2
"""The exit code when a command was called wrongly."""


def help_if_alone(context: typer.Context) -> None:
    """Print a group's help and end, if no command of it was named."""
    if context.invoked_subcommand is None:
        try:
            say(context.get_help())
        except (BrokenPipeError, SystemExit):
            # Typer may print it itself, through Rich, which ends the process if nobody reads.
            stream_closed()
        raise typer.Exit(USAGE)


def chroma_path(store: str) -> Path:
    """The folder in `chroma:PATH`.

    Raises:
        ConfigurationError: If it is something else.
    """
    kind, _, path = store.partition(":")
    if kind != "chroma" or not path:
        raise ConfigurationError(f"--store is chroma:PATH, not {store!r}")
    return Path(path).expanduser()


def default_journal(store: Path) -> Path:
    """The journal beside a store.

    Example:
        >>> default_journal(Path("data/chroma")).as_posix()
        'data/chroma-journal.db'
    """
    if store.name in ("", ".."):  # "." and "..": beside what they stand for
        store = store.resolve()
    return store.parent / f"{store.name}-journal.db"


def make_store(store: str, collection: str | None = None) -> ChromaStore:
    """The store that an option names.

    Args:
        store: `chroma:PATH`.
        collection: The collection in it; None for the usual one.
    """
    path = chroma_path(store)
    return ChromaStore(path, collection) if collection else ChromaStore(path)


def make_embedder(embedder: str) -> Embedder:
    """The embedder an option names.

    Raises:
        ConfigurationError: If it names none.
    """
    kind, _, model = embedder.partition(":")
    if embedder == "local":
        from autoplay_rag.embedders.local import LocalEmbedder

        return LocalEmbedder()
    if kind == "openai":
        from autoplay_rag.embedders.openai import OpenAIEmbedder

        return OpenAIEmbedder(model) if model else OpenAIEmbedder()
    raise ConfigurationError(f"--embedder is local or openai:MODEL, not {embedder!r}")
