"""Engines: a service, this process, processes of this machine, a Ray cluster."""
