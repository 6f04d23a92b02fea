"""What of deleted rows may be left in a PostgreSQL server and around it."""

from __future__ import annotations

from collections.abc import Mapping

from autoplay_rag.stores.postgres.dsn import place_of

__all__ = ["remains_in"]


def remains_in(parameters: Mapping[str, str]) -> tuple[str, ...]:
    """Return what may hold deleted rows, a sentence each.

    This package sees the tables only. It does not know which of these there are.

    Args:
        parameters: The parameters of a connection.

    Example:
        >>> remains_in({"host": "db.test", "dbname": "app"})[0].partition(":")[0]
        'PostgreSQL (app on db.test)'
    """
    place = f"PostgreSQL ({place_of(parameters)})"
    return (
        (
            f"{place}: its files hold deleted rows until later rows overwrite them, and until no older "
            "transaction can read them; VACUUM FULL or pg_repack writes the files anew."
        ),
        (
            f"{place}: its write-ahead log and archives of that log hold them until they are removed, "
            "and replicas until they have caught up. Log files with statements may hold them too."
        ),
        (
            f"{place}: base backups, dumps and snapshots from before hold them: let them expire, or "
            "delete them. After a restore, the register of erasures (`erasure_register`) deletes them "
            "again."
        ),
    )
