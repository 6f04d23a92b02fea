"""The MCP interface: tools with which the model of an agent reads what people did.

`arguments.py` and `results.py` are what a model writes and reads; `tools.py` answers a call through
the routes of the HTTP interface, so that a token shows the same here as there; `server.py` speaks the
protocol over HTTP and standard input; `relay.py` passes calls on to a running server. Only the last
two import `mcp`, which takes most of a second.
"""
