"""A function of a module and its arguments, as bytes for another process. Nothing is pickled."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from autoplay_rag.errors import ConfigurationError

__all__ = ["name_of", "pack_call", "unpack_call"]

_FUNCTION = 1
"""The type of a MessagePack extension that holds the name of a function."""
_RUN_NAME = "__autoplay_worker__"
"""The `__name__` of a program that is loaded again in a worker."""


def name_of(function: Any) -> str:
    """Return `module:name` of a function or a class, or `file.py:name` if the program defines it.

    Raises:
        ConfigurationError: If another process cannot find it by a name.

    Example:
        >>> name_of(Path.home)
        'pathlib:Path.home'
        >>> name_of(lambda: None)
        Traceback (most recent call last):
        autoplay_rag.errors.ConfigurationError: ...
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    try:
        reduce(getattr, name.split("."), module)
    except AttributeError:
        raise ConfigurationError(
            f"{function!r} cannot be found by its name in another process: pass a function that is "
            "defined at the top level of a module, and its arguments separately"
        ) from None
    place = getattr(module, "__name__", "")
    if place == "__main__":
        place = _program()
    return f"{place}:{name}"


def pack_call(function: Callable[..., Any], arguments: Sequence[Any]) -> bytes:
    """Encode a call.

    Args:
        function: A function or a class at the top level of a module.
        arguments: Plain data (None, bool, int, float, str, bytes, lists, dicts), and functions as above.

    Raises:
        ConfigurationError: If it cannot be encoded.

    Example:
        >>> function, arguments = unpack_call(pack_call(sorted, [[3, 1, 2], len]))
        >>> function(arguments[0]), arguments[1]
        ([1, 2, 3], <built-in function len>)
    """
    try:
        return _encoder.encode([function, *arguments])
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise ConfigurationError(
            f"an argument for {name_of(function)} cannot be passed to another process: {error}. "
            "Pass plain data (None, bool, int, float, str, bytes, lists, dicts), or a function of "
            "a module"
        ) from error


def unpack_call(packed: bytes) -> tuple[Callable[..., Any], list[Any]]:
    """Decode a call, and import its functions.

    Raises:
        ConfigurationError: If a function is not found.
    """
    function, *arguments = _decoder.decode(packed)
    return function, arguments


def _program() -> str:
    """Return the name under which the running program can be loaded again."""
    program = sys.modules["__main__"]
    if spec := getattr(program, "__spec__", None):
        return str(spec.name)  # started with `python -m`
    path = Path(getattr(program, "__file__", None) or "")
    if not path.is_file():
        raise ConfigurationError(
            "a function of a notebook or of an interactive session cannot be found by another "
            "process: define it in a module"
        )
    return str(path.absolute())


def _encode(value: object) -> msgspec.msgpack.Ext:
    if not callable(value):
        raise TypeError(f"its type is {type(value).__name__}")
    return msgspec.msgpack.Ext(_FUNCTION, name_of(value).encode())


def _decode(code: int, data: memoryview) -> Any:
    del code  # only functions are encoded so
    name = bytes(data).decode()
    place, _, path = name.rpartition(":")
    try:
        if place.endswith(".py"):
            loaded = runpy.run_path(place, run_name=_RUN_NAME)
            first, *rest = path.split(".")
            return reduce(getattr, rest, loaded[first])
        return reduce(getattr, path.split("."), import_module(place))
    except (ImportError, AttributeError, KeyError, OSError) as error:
        raise ConfigurationError(f"{name} is not found in the worker process: {error}") from error


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
_decoder: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[Any], ext_hook=_decode)
