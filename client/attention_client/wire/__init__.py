"""The service on the wire: the channel, requests, responses, errors, and calls as values."""
