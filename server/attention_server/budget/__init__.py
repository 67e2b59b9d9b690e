"""One account of the bytes that requests, answers and connections hold in memory."""
