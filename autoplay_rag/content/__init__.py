"""What ingest, live, search and loading share about payloads and chunks. Pure."""
