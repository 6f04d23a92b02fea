"""A pipeline in another process, reached over HTTP."""
