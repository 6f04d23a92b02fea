"""The reference of the command, from what its `--help` says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from autoplay_rag.cli.app import app

__all__ = ["command_reference"]

_NAME = "autoplay-rag"
_TYPE = re.compile(r" <[^>]+>")
"""The type of a value that has no name of its own, such as `<float>`."""


def command_reference() -> str:
    """Return a section of Markdown for each command, with its arguments and options."""
    group = typer.main.get_command(app)
    context = group.make_context(_NAME, [], resilient_parsing=True)
    parts = ["## Options of every command\n\nThey come before the name of the command.\n"]
    parts += [*_table(group, context)]
    for name, command in _commands(group, context):
        # Without arguments, but not refused for it: nothing runs.
        own = command.make_context(name, [], parent=context, resilient_parsing=True)
        parts += [f"## {name}\n", *_section(command, own, name)]
        for subname, sub in _commands(command, own):
            inner = sub.make_context(subname, [], parent=own, resilient_parsing=True)
            parts += [f"### {name} {subname}\n", *_section(sub, inner, f"{name} {subname}")]
    return "\n".join(parts)


def _commands(group: Any, context: Any) -> Iterator[tuple[str, Any]]:
    for name in getattr(group, "list_commands", lambda _: [])(context):
        yield name, group.get_command(context, name)


def _section(command: Any, context: Any, name: str) -> Iterator[str]:
    usage = " ".join([_NAME, name, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```\n"
    yield f"{command.help}\n"
    yield from _table(command, context)


def _table(command: Any, context: Any) -> Iterator[str]:
    records = [
        record
        for parameter in command.get_params(context)
        if parameter.name != "help" and (record := parameter.get_help_record(context))
    ]
    if records:
        yield "| argument or option | meaning |\n|---|---|"
        for names, text in records:
            argument = not names.startswith("-")
            shown = _TYPE.sub("" if argument else " VALUE", names)
            yield f"| {_code(shown)} | {_prose(text)} |"
        yield ""


def _code(text: str) -> str:
    """Return a text as code in a table, where a bar needs no escape."""
    return f"`{text}`"


def _prose(text: str) -> str:
    """Return a text as prose in a table: one line, and no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
