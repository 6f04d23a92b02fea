"""What users are doing right now, in your vector store seconds later."""
