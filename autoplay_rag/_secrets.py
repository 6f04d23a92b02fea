"""Secrets from the environment, or from files that it names. Never from the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from autoplay_rag.errors import ConfigurationError

__all__ = ["secret_from"]


def secret_from(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the secret in a variable, or in the file that the variable with `_FILE` names.

    Args:
        name: The variable.
        environ: The variables; by default those of the process.

    Returns:
        The secret, without white space around it; None if neither variable is set.

    Raises:
        ConfigurationError: If both variables are set, the file cannot be read, or there is no
            secret in it.

    Example:
        >>> secret_from("AUTOPLAY_RAG_READ_KEY", {"AUTOPLAY_RAG_READ_KEY": " s3cret "})
        's3cret'
    """
    variables = os.environ if environ is None else environ
    value, path = variables.get(name), variables.get(f"{name}_FILE")
    if not path:
        return (value or "").strip() or None
    if value:
        raise ConfigurationError(f"{name} and {name}_FILE are both set: unset one of them")
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(f"{name}_FILE: {path} cannot be read: {reason}") from None
    if not secret:
        raise ConfigurationError(f"{name}_FILE: {path} is empty")
    return secret
