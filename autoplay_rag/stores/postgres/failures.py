"""PostgreSQL's errors as errors of stores.

Only the message and the code of an error are passed on. Its details quote values of rows.
"""

from __future__ import annotations

from psycopg import DataError, Error, IntegrityError, errors

from autoplay_rag.errors import (
    ConfigurationError,
    StoreError,
    StoreRejectedError,
    StoreUnavailableError,
)

__all__ = ["reason_of", "store_error"]


def store_error(error: Exception, place: str) -> StoreError | ConfigurationError:
    """Return the store's error for an error of psycopg.

    Args:
        error: What psycopg raised.
        place: Server and database, for the message.
    """
    reason = reason_of(error)
    if isinstance(error, errors.InsufficientPrivilege):
        return StoreUnavailableError(
            f"PostgreSQL ({place}): {reason}. Let an administrator grant the role this right, or "
            "connect as the role that owns the tables"
        )
    if isinstance(error, errors.UndefinedTable | errors.InvalidSchemaName):
        return StoreUnavailableError(
            f"PostgreSQL ({place}): {reason}. The table was deleted meanwhile; start the store "
            "again, which creates what is missing"
        )
    if isinstance(
        error, DataError | IntegrityError | errors.ProgramLimitExceeded | errors.StatementTooComplex
    ):
        return StoreRejectedError(f"PostgreSQL ({place}) refuses the input: {reason}")
    return StoreUnavailableError(f"PostgreSQL ({place}): {reason}")


def reason_of(error: BaseException) -> str:
    """Return the message and the code of an error of psycopg, without the values of rows."""
    if isinstance(error, Error) and error.diag.message_primary:
        code = f" ({error.sqlstate})" if error.sqlstate else ""
        return f"{error.diag.message_primary}{code}"
    # An error of the connection. It names host, port and user.
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
