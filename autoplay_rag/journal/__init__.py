"""What was received and what became of it: the queue and the catalog."""
