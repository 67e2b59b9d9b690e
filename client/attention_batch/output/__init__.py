"""Parts, their journal, and the output file."""
