"""The command-line application, its error output and its exit codes."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Annotated

import typer

from autoplay_rag.cli.backup import backup, restore
from autoplay_rag.cli.connector import connector
from autoplay_rag.cli.console import LogFormat, error, log_to_stderr, say, stream_closed
from autoplay_rag.cli.demo import demo
from autoplay_rag.cli.forget import export, forget
from autoplay_rag.cli.import_ import import_files
from autoplay_rag.cli.ingest import ingest
from autoplay_rag.cli.journal import dead_letters, status
from autoplay_rag.cli.mcp import mcp
from autoplay_rag.cli.migrate import migrate
from autoplay_rag.cli.options import USAGE, help_without_subcommand
from autoplay_rag.cli.reembed import copy, reembed
from autoplay_rag.cli.relay import relay
from autoplay_rag.cli.search import search
from autoplay_rag.cli.serve import serve
from autoplay_rag.cli.sessions import session, sessions
from autoplay_rag.cli.tail import tail
from autoplay_rag.cli.token import token
from autoplay_rag.cli.verify import verify
from autoplay_rag.errors import AutoplayError, ConfigurationError, MissingExtraError

__all__ = ["run"]

FAILED = 1
_TYPER_INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
for command in (
    demo, connector, ingest, search, sessions, session, tail, status, verify, backup, restore,
    forget, export, reembed, copy, migrate, serve, relay, mcp, token,
):  # fmt: skip
    app.command()(command)
app.command("import")(import_files)  # `import` cannot be the name of a function
app.add_typer(dead_letters, name="dead-letters")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"autoplay-rag {version('autoplay-rag')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log details to standard error.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            metavar="text|json", help="The format of log lines, notes and errors on standard error."
        ),
    ] = "text",
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """What users are doing right now, in your vector store seconds later."""
    log_to_stderr(verbose=verbose, log_format=log_format)
    help_without_subcommand(context)


def run(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: The arguments after the program's name; by default those of the process.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for wrong usage. An error was already
        printed in one line.
    """
    try:
        code = app(args, prog_name="autoplay-rag", standalone_mode=False)
    except (KeyboardInterrupt, asyncio.CancelledError, typer.Abort):
        error("interrupted")
        return FAILED
    except (BrokenPipeError, SystemExit):
        # The reader of the output has exited, as in `--help | true`. Rich raises SystemExit then.
        stream_closed()
        return 0
    except Exception as found:
        explained = _explain(found)
        if explained is None:
            raise
        error(explained[0])
        return explained[1]
    if code == _TYPER_INTERRUPTED:
        error("interrupted")
        return FAILED
    return code if isinstance(code, int) else 0


def _explain(found: Exception) -> tuple[str, int] | None:
    """Return the message and the exit code for an error; None if it is a bug in this program."""
    if isinstance(found, ConfigurationError) and not isinstance(found, MissingExtraError):
        return str(found), USAGE
    if isinstance(found, AutoplayError):
        return str(found), FAILED
    if isinstance(found, OSError):
        about = f"{found.filename}: " if found.filename else ""
        return about + (found.strerror or str(found) or type(found).__name__), FAILED
    # Errors of the argument parser. Typer's version decides which library defines them.
    if (format_message := getattr(found, "format_message", None)) is not None:
        return format_message(), getattr(found, "exit_code", USAGE)
    return None
