"""`autoplay-rag migrate`: the tables in PostgreSQL, made by a role that may create them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from autoplay_rag.cli.console import say, say_json
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.stores.postgres.dsn import VARIABLE, public_dsn

if TYPE_CHECKING:
    from autoplay_rag.cluster.migrating import MigrationReport

__all__ = ["migrate"]


def migrate(
    *,
    postgres: Annotated[
        str,
        typer.Option(
            "--postgres",
            metavar="DSN",
            help="The database: postgresql://USER@HOST/DATABASE without a password; by default "
            f"what {VARIABLE}, or the file that {VARIABLE}_FILE names, says.",
        ),
    ] = "postgresql:",
    schema: Annotated[str, typer.Option(metavar="NAME", help="The schema.")] = "autoplay",
    collection: Annotated[
        str, typer.Option(metavar="NAME", help="The collection of the store.")
    ] = "chunks",
    grant: Annotated[
        str | None,
        typer.Option(metavar="ROLE", help="A role that may use the tables, and create none."),
    ] = None,
    sql: Annotated[
        bool,
        typer.Option(
            "--sql",
            help="Print the statements for a database without the schema, and connect to nothing.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Create or upgrade the tables in PostgreSQL, with a role that may.

    A pipeline does it by itself when it starts, where its role may. Otherwise run this with another
    role first, after an upgrade of this package, and once after the first backfill: it builds the
    vector index, which only the owner of the tables can.
    """
    dsn = public_dsn(postgres)
    if sql:
        from autoplay_rag.cluster.migrating import migration_statements

        for statement in migration_statements(schema, table=collection, grant=grant):
            say(f"{statement};")
        return
    report = asyncio.run(_migrate(dsn, schema, collection, grant))
    if json:
        say_json(report)
    else:
        say(str(report))


async def _migrate(dsn: str, schema: str, collection: str, grant: str | None) -> MigrationReport:
    from autoplay_rag.cluster.migrating import migrate as create

    with Interrupts():
        return await create(dsn, schema=schema, table=collection, grant=grant)
