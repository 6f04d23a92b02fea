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
from tools.docs_site.schemas import default_of, fields_table, value_of

__all__ = ["http_reference"]

_NEEDS = {
    "own": "a read key, or a token",
    "read": "a read key",
    "ingest": "an ingest key",
    "admin": "an admin key",
    "open": "nothing",
}
_SEE = re.compile(r"`([A-Z]\w+)((?:\.\w+)?)`")


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
        parts.append(f"### {name}\n")
        if about := schema.get("description"):
            parts.append(f"{_linked(about)}\n")
        parts += fields_table(schema)
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
            default = "required" if one["required"] else default_of(one["schema"])
            yield f"| `{one['name']}` | {one['in']} | {value_of(one['schema'])} | {default} |"
        yield ""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"**Body** (`{kind}`): {value_of(content['schema'])}\n"
    for status, answer in operation["responses"].items():
        if status != "default":  # a problem, the same everywhere
            kind, content = next(iter(answer["content"].items()))
            yield f"**Answer {status}** (`{kind}`): {value_of(content['schema'])}\n"


def _linked(text: str) -> str:
    """Return a text whose public names of Python lead to their reference."""

    def link(found: re.Match[str]) -> str:
        public = found[1] in autoplay_rag.__all__
        return f"[{found[0]}][autoplay_rag.{found[1]}{found[2]}]" if public else found[0]

    return _SEE.sub(link, text)
