"""Work on a journal and its store as a whole: comparing them, backing them up, restoring them."""
