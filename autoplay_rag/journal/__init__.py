"""The journal: the queue of received payloads and the catalog of stored chunks."""
