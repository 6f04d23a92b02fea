"""A connector to develop against, on this machine."""
