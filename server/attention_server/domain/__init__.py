"""What a request, its call and its answer are: pure data, and the limits on it."""
