"""Listening sockets, and the number of connections that a process can hold."""

import resource
import socket

BACKLOG = 512  # connections that wait to be accepted: more would all be read in one turn of the loop


def listen(protocol: str, host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        protocol: name of the protocol, for errors.
        host: address.
        port: port; 0 for a free one.

    Raises:
        OSError: the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen for {protocol} on {host}:{port}: {error.strerror}") from error


def max_connections() -> int:
    """Return the maximum number of connections of a port: half of the files that the process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def max_connections_of_host(most: int) -> int:
    """Return the maximum number of connections by one address, of `most` in all."""
    return most - most // 8
