"""Checks of arguments: one wording for each kind of wrong value."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from autoplay_rag.errors import ConfigurationError

__all__ = ["check_above", "check_at_least", "check_choice", "check_function", "check_journal_file"]


def check_journal_file(path: object) -> None:
    """Refuse the address of a journal in PostgreSQL where a file is needed.

    Raises:
        ConfigurationError: If it is one. The message does not quote it: it may have a password.

    Example:
        >>> check_journal_file("postgresql://ann:s3cret@db.test/app")
        Traceback (most recent call last):
        ...
        autoplay_rag.errors.ConfigurationError: this needs the path of a journal file, ...
    """
    if str(path).startswith(("postgresql:", "postgres:")):
        raise ConfigurationError(
            "this needs the path of a journal file, not the address of a journal in PostgreSQL: use "
            'the pipeline itself, IngestPipeline(journal="postgresql://...")'
        )


def check_at_least(
    name: str, value: Any, least: float, *, whole: bool = False, optional: bool = False
) -> None:
    """Refuse a number below `least`, NaN, and what is not a number.

    Args:
        name: The argument's name.
        value: What was given.
        least: The smallest value that works.
        whole: Whether it must be a whole number.
        optional: Whether None is allowed.

    Raises:
        ConfigurationError: If the value cannot work.

    Example:
        >>> check_at_least("max_attempts", 0, 1, whole=True)
        Traceback (most recent call last):
        autoplay_rag.errors.ConfigurationError: max_attempts must be at least 1, not 0
    """
    _check(
        name,
        value,
        f"at least {least:g}",
        lambda number: number >= least,
        whole=whole,
        optional=optional,
    )


def check_above(
    name: str, value: Any, bound: float = 0, *, whole: bool = False, optional: bool = False
) -> None:
    """Refuse a number not above `bound`; otherwise as `check_at_least`."""
    wanted = f"{'a whole number ' if whole else ''}above {bound:g}"
    _check(name, value, wanted, lambda number: number > bound, whole=whole, optional=optional)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse a value that is not one of `choices`.

    Raises:
        ConfigurationError: If it is not.

    Example:
        >>> check_choice("durability", "most", ("normal", "full"))
        Traceback (most recent call last):
        autoplay_rag.errors.ConfigurationError: durability must be 'normal' or 'full', not 'most'
    """
    if value not in choices:
        named = " or ".join(repr(choice) for choice in choices)
        raise ConfigurationError(f"{name} must be {named}, not {value!r}")


def check_function(name: str, value: Any, *, optional: bool = True) -> None:
    """Refuse what cannot be called.

    Raises:
        ConfigurationError: If it cannot.
    """
    if value is None and optional:
        return
    if not callable(value):
        raise ConfigurationError(f"{name} must be a function, not {value!r}")


def _check(name: str, value: Any, wanted: str, holds: Any, *, whole: bool, optional: bool) -> None:
    if value is None and optional:
        return
    otherwise = " or None" if optional else ""
    if not isinstance(value, Real) or not holds(value):
        raise ConfigurationError(f"{name} must be {wanted}{otherwise}, not {value!r}")
    if whole and not isinstance(value, Integral):
        raise ConfigurationError(f"{name} must be a whole number{otherwise}, not {value!r}")
