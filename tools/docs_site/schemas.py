"""JSON schemas as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["default_of", "fields_table", "value_of"]

_BOUNDS = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
)


def fields_table(schema: Mapping[str, Any], first: str = "field") -> Iterator[str]:
    """Yield the lines of a table of the fields of an object. The meaning stands there if one is given.

    Args:
        schema: The schema of the object.
        first: The title of the first column.
    """
    fields = schema.get("properties", {})
    required = schema.get("required", ())
    described = any("description" in field for field in fields.values())
    yield f"| {first} | value | default |{' meaning |' if described else ''}"
    yield f"|---|---|---|{'---|' if described else ''}"
    for name, field in fields.items():
        default = "required" if name in required else default_of(field)
        meaning = f" {field.get('description', '')} |" if described else ""
        yield f"| `{name}` | {value_of(field)} | {default} |{meaning}"
    yield ""


def default_of(schema: Mapping[str, Any]) -> str:
    """Return the default of a field; "" if there is none."""
    default = schema.get("default")
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "" if default is None else f"`{default}`"


def value_of(schema: Mapping[str, Any]) -> str:
    """Return which values a field takes. A type of its own is a link to its heading."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf"):
        return " or ".join(value_of(one) for one in choices)
    if values := schema.get("enum"):
        return " or ".join(f"`{value}`" for value in values)
    if (kind := schema.get("type")) == "array":
        return f"list of {value_of(schema.get('items', {}))}"
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping):
        return f"object of {value_of(values)}"
    limits = [
        said + unit
        for least, most, unit in _BOUNDS
        if (said := _range(schema.get(least), schema.get(most)))
    ]
    return f"{kind or 'any JSON'}{' (' + ', '.join(limits) + ')' if limits else ''}"


def _range(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return f"at most {most:,.0f}" if most is not None else ""
    return f"{least:,.0f} to {most:,.0f}"
