"""Search: finds the chunks that answer a question."""
