"""The one check of numbers; its wording is that of autoplay_rag."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from autoplay_rag.errors import ConfigurationError

__all__ = ["check_above_0"]


def check_above_0(name: str, value: Any, *, whole: bool = False) -> None:
    """Refuse a number not above 0, NaN, and what is not a number.

    Args:
        name: The argument's name.
        value: What was given.
        whole: Whether it must be a whole number.

    Raises:
        ConfigurationError: If the value cannot work.

    Example:
        >>> check_above_0("max_batch", 0, whole=True)
        Traceback (most recent call last):
        autoplay_rag.errors.ConfigurationError: max_batch must be a whole number above 0, not 0
    """
    number: Any = value if isinstance(value, Integral if whole else Real) else 0
    if not number > 0:
        wanted = "a whole number above 0" if whole else "above 0"
        raise ConfigurationError(f"{name} must be {wanted}, not {value!r}")
