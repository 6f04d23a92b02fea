"""Sources: where payloads come from besides the stream."""
