"""Reads a JSON object into a msgspec struct value by value. Pure.

A value of a wrong type costs only itself: it becomes the field's default and is reported. In a list
of objects it costs only its item. Where the meaning is plain it is converted and reported: a number
where an id is text, text where a time is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

import msgspec

__all__ = ["Int64", "OnRepair", "json_name", "read_tolerantly"]

Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""JSON has integers of any length; what is written to a journal must fit a machine word."""

OnRepair: TypeAlias = Callable[[str], None]
"""Called with a short description of each value that was given up or converted."""

_Read: TypeAlias = Callable[[Any, OnRepair, str], Any]
"""Reads one value: takes the value, who hears of repairs, and the place for messages."""

_T = TypeVar("_T", bound=msgspec.Struct)
_INT64 = 2**63 - 1
_TIME_NAME = re.compile("^timestamp_|_at$")
_DIGITS = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?")


def read_tolerantly(
    cls: type[_T], data: Mapping[str, Any], on_repair: OnRepair, at: str = ""
) -> _T:
    """Build a struct field by field; a value that does not fit is given up and reported.

    Args:
        cls: The struct. Its fields are strings, numbers, `Int64`, or lists of strings or structs.
        data: A JSON object as Python values.
        on_repair: Called once for each value given up or converted, with its place and what was
            found there (never the value itself).
        at: The place of `data` itself, for messages.

    Example:
        >>> class Point(msgspec.Struct):
        ...     x: float = 0.0
        ...     name: str = ""
        >>> read_tolerantly(Point, {"x": "far", "name": "home"}, print)
        x: a number was expected, not a string
        Point(x=0.0, name='home')
    """
    values: dict[str, Any] = {}
    for key, name, read in _readers(cls):
        value = data.get(key)
        if value is None:
            continue
        try:
            values[name] = read(value, on_repair, f"{at}{name}")
        except (TypeError, ValueError, OverflowError) as error:
            on_repair(f"{at}{name}: {error}")
    return cls(**values)


def json_name(value: Any) -> str:
    """The JSON name of a value's type, for messages that must not quote the value."""
    return _NAMES.get(type(value), type(value).__name__)


_NAMES = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


def _text(value: Any, on_repair: OnRepair, at: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string was expected, not a {json_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON allows a lone surrogate, but no store and no model takes one.
        on_repair(f"{at}: a lone surrogate was replaced")
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _id(value: Any, on_repair: OnRepair, at: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        # Some systems number their users; without the id the payload would belong to nobody.
        text = str(value)
        on_repair(f"{at}: a number was read as a string")
        return text
    return _text(value, on_repair, at)


def _number(value: Any, _on_repair: OnRepair, _at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number was expected, not a {json_name(value)}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _time(value: Any, on_repair: OnRepair, at: str) -> float:
    """A number, or a time as text: ISO 8601, in UTC where it names no zone, or digits."""
    if not isinstance(value, str):
        return _number(value, on_repair, at)
    text = value.strip()
    try:
        if _DIGITS.fullmatch(text):
            number = float(text)
        else:
            moment = datetime.fromisoformat(text)
            number = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # the message would quote the value
        raise TypeError("a number was expected, not a string") from None
    on_repair(f"{at}: a time was read from a string")
    return _number(number, on_repair, at)


def _integer(value: Any, on_repair: OnRepair, at: str) -> int:
    number = _number(value, on_repair, at)
    # An int is taken as it is: as a float, one near the limit would be another number.
    whole = value if isinstance(value, int) else int(number)
    if (isinstance(value, float) and number != whole) or not -_INT64 - 1 <= whole <= _INT64:
        raise ValueError("a whole number of 64 bits was expected")
    return whole


def _texts(value: Any, on_repair: OnRepair, at: str) -> list[str]:
    texts: list[str] = []
    for position, item in enumerate(_array(value)):
        if isinstance(item, str):
            texts.append(_text(item, on_repair, f"{at}[{position}]"))
        else:
            on_repair(f"{at}[{position}]: a string was expected, not a {json_name(item)}")
    return texts


def _structs(cls: type[_T]) -> _Read:
    def read(value: Any, on_repair: OnRepair, at: str) -> list[_T]:
        found: list[_T] = []
        for position, item in enumerate(_array(value)):
            where = f"{at}[{position}]"
            if isinstance(item, cls):
                found.append(item)
            elif isinstance(item, Mapping):
                found.append(read_tolerantly(cls, item, on_repair, f"{where}."))
            else:
                on_repair(f"{where}: an object was expected, not a {json_name(item)}")
        return found

    return read


def _array(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"an array was expected, not a {json_name(value)}")
    return value


_BY_TYPE: dict[Any, _Read] = {
    str: _text,
    str | None: _text,
    Int64: _integer,
    float: _number,
    list[str]: _texts,
}
_READERS: dict[type[msgspec.Struct], list[tuple[str, str, _Read]]] = {}


def _readers(cls: type[msgspec.Struct]) -> list[tuple[str, str, _Read]]:
    """For each field its JSON key, its name and its reader; made once for each class."""
    readers = _READERS.get(cls)
    if readers is None:
        readers = _READERS[cls] = [
            (field.encode_name, field.name, _reader(field)) for field in msgspec.structs.fields(cls)
        ]
    return readers


def _reader(field: msgspec.structs.FieldInfo) -> _Read:
    if field.name.endswith("_id"):
        return _id
    if field.type is float and _TIME_NAME.search(field.name):
        return _time
    if field.type in _BY_TYPE:
        return _BY_TYPE[field.type]
    assert get_origin(field.type) is list, field
    return _structs(get_args(field.type)[0])
