"""The pipeline: batches payloads, plans chunks, embeds them and writes them to the store."""
