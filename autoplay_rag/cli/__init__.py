"""The `autoplay-rag` command."""
