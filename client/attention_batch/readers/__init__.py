"""Input files, their columns and rows."""
