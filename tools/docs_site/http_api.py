"""The reference of the HTTP interface, from the OpenAPI document that `serve` answers with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import autoplay_rag
from autoplay_rag import IngestPipeline
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.serve.access import needs_of
from autoplay_rag.serve.building import ROUTERS
from autoplay_rag.stores import MemoryStore

__all__ = ["http_reference"]

_NEEDS = {
    "own": "a read key, or a token",
    "read": "a read key",
    "ingest": "an ingest key",
    "admin": "an admin key",
    "open": "nothing",
}
_SEE = re.compile(r"`([A-Z]\w+)((?:\.\w+)?)`")
_BOUNDS = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
)


def http_reference() -> str:
    """Return a section of Markdown for each route, then one for each type of the JSON."""
    # Nothing runs and nothing is stored: the key only allows the application to be made.
    keys = Keys(admin="only for the documentation, where nothing is served")
    document = create_app(IngestPipeline(MemoryStore()), keys=keys).openapi()
    needs = _needs()
    parts: list[str] = []
    tag = None
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                parts.append(f"## {tag.capitalize()}\n")
            parts += _operation(method.upper(), path, operation, needs[method.upper(), path])
    parts.append("## Types\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += _type(name, schema)
    return "\n".join(parts)


def _needs() -> dict[tuple[str, str], str]:
    return {
        (method, route.path_format): _NEEDS[needs_of(route.dependant)[0].need]
        for router in ROUTERS
        for route in router.routes
        for method in route.methods
    }


def _operation(method: str, path: str, operation: Mapping[str, Any], needs: str) -> Iterator[str]:
    yield f"### {method} {path}\n"
    yield f"{_linked(operation['description'])}\n"
    yield f"Needs {needs}.\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | value | default |\n|---|---|---|---|"
        for one in parameters:
            default = "required" if one["required"] else _default(one["schema"])
            yield f"| `{one['name']}` | {one['in']} | {_value(one['schema'])} | {default} |"
        yield ""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"**Body** (`{kind}`): {_value(content['schema'])}\n"
    for status, answer in operation["responses"].items():
        if status != "default":  # a problem, the same everywhere
            kind, content = next(iter(answer["content"].items()))
            yield f"**Answer {status}** (`{kind}`): {_value(content['schema'])}\n"


def _type(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if about := schema.get("description"):
        yield f"{_linked(about)}\n"
    required = schema.get("required", ())
    yield "| field | value | default |\n|---|---|---|"
    for field, value in schema.get("properties", {}).items():
        default = "required" if field in required else _default(value)
        yield f"| `{field}` | {_value(value)} | {default} |"
    yield ""


def _default(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return (
        ""
        if default is None
        else f"`{str(default).lower() if default in (True, False) else default}`"
    )


def _value(schema: Mapping[str, Any]) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf"):
        return " or ".join(_value(one) for one in choices)
    if values := schema.get("enum"):
        return " or ".join(f"`{value}`" for value in values)
    if (kind := schema.get("type")) == "array":
        return f"list of {_value(schema.get('items', {}))}"
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping):
        return f"object of {_value(values)}"
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


def _linked(text: str) -> str:
    """Return a text whose public names of Python lead to their reference."""

    def link(found: re.Match[str]) -> str:
        public = found[1] in autoplay_rag.__all__
        return f"[{found[0]}][autoplay_rag.{found[1]}{found[2]}]" if public else found[0]

    return _SEE.sub(link, text)
