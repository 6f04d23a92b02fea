"""Embedders by name, as commands, settings files and jobs give them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import ConfigurationError

if TYPE_CHECKING:
    from autoplay_rag.embedders.local import Precision

__all__ = ["EMBEDDER_NAMES", "check_embedder_name", "make_embedder"]

EMBEDDER_NAMES: Final = "local, local:int8 or openai:MODEL"
_LOCAL: Final[dict[str, Precision]] = {
    "local": "fp32",
    "local:fp32": "fp32",
    "local:int8": "int8",
}


def check_embedder_name(name: str) -> None:
    """Check that a name is one of an embedder. Makes none, and needs no key.

    Raises:
        ConfigurationError: If not.

    Example:
        >>> check_embedder_name("bert")
        Traceback (most recent call last):
        autoplay_rag.errors.ConfigurationError: embedder must be local, local:int8 or openai:MODEL, not 'bert'
    """
    if name not in _LOCAL and name.partition(":")[0] != "openai":
        raise ConfigurationError(f"embedder must be {EMBEDDER_NAMES}, not {name!r}")


def make_embedder(name: str) -> Embedder:
    """Make the embedder of a name.

    Args:
        name: "local" for the bundled model; "local:int8" for the same model with
            multiplications of integers, and "local:fp32" for what "local" is; "openai" or
            "openai:MODEL" for OpenAI's.

    Raises:
        ConfigurationError: If the value has another form, or the embedder cannot be made.

    Example:
        >>> make_embedder("local").model
        'local:all-MiniLM-L6-v2-int8'
        >>> make_embedder("local:int8").model
        'local:all-MiniLM-L6-v2-w8a8'
    """
    check_embedder_name(name)
    if name in _LOCAL:
        from autoplay_rag.embedders.local import LocalEmbedder

        return LocalEmbedder(precision=_LOCAL[name])
    from autoplay_rag.embedders.openai import OpenAIEmbedder

    model = name.partition(":")[2]
    return OpenAIEmbedder(model) if model else OpenAIEmbedder()
