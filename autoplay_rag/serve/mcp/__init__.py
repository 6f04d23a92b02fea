"""The MCP interface: tools with which the model of an agent reads what people did.

`arguments.py` and `results.py` are what a model writes and reads. `tools.py` answers a call through
the routes of the HTTP interface, so that a token shows the same here as there. `server.py` has the
protocol's server, `stdio.py` runs one on standard input and output, and `relay.py` passes calls on to
a running server. Only these three import `mcp`, which takes most of a second.
"""
