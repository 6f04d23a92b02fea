"""Searches chunks and sessions, and reads sessions in order."""
