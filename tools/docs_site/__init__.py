"""Builds the documentation site: `python -m tools.docs_site`.

| module | does |
|---|---|
| `staging` | puts all pages into one folder, for the site generator |
| `links` | finds, rewrites and checks links in Markdown |
| `notebooks` | a notebook as a page |
| `http_api` | the reference of the HTTP interface, from the OpenAPI document |
| `mcp_tools` | the reference of the tools over MCP |
| `metrics` | the reference of the metrics |
| `schemas` | JSON schemas as Markdown |
| `docstrings` | makes docstrings readable for the generator |
| `commands` | the reference of the command, from its `--help` |
| `built` | checks the finished site |
"""
