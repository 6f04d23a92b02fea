"""The reference of the tools over MCP, from what an agent is told about them."""

from __future__ import annotations

from collections.abc import Iterator

from autoplay_rag.serve.mcp.tools import TOOLS, Tool
from tools.docs_site.schemas import fields_table

__all__ = ["mcp_reference"]


def mcp_reference() -> str:
    """Return a section of Markdown for each tool, then one for each type of the results."""
    types = {
        name: schema
        for tool in TOOLS.values()
        for name, schema in tool.result.model_json_schema().get("$defs", {}).items()
    }
    parts = [line for tool in TOOLS.values() for line in _tool(tool)]
    parts.append("## Types\n")
    for name, schema in sorted(types.items()):
        parts += [f"### {name}\n", f"{schema.get('description', '')}\n", *fields_table(schema)]
    return "\n".join(parts)


def _tool(tool: Tool) -> Iterator[str]:
    yield f"## {tool.name}\n"
    yield f"{tool.described(bound=False)}\n"
    yield from fields_table(tool.anyone.model_json_schema(), "argument")
    of_keys = tool.anyone.model_fields.keys() - tool.own.model_fields.keys()
    names = " or ".join(f"`{name}`" for name in sorted(of_keys, reverse=True))
    yield f"Under a token the call has no {names}: the token says whose data is read.\n"
    result = tool.result.model_json_schema()
    yield f"**Result:** {result.get('description', '')}\n"
    yield from fields_table(result)
