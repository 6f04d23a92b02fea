"""Receives a connector's payloads, by stream or webhook, and calls back with them."""
