"""The Host header of HTTP/1.1, checked against the address that the server listens on.

A web page can point a name of its own at 127.0.0.1 after it has loaded (DNS rebinding). The browser then treats the
server as part of that page's site and lets the page read every response. Its requests name the page's host, though: a
server on a loopback address answers to loopback names alone.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from attention_server.errors import InvalidRequest, Misdirected

MAX_LENGTH = 64  # characters; no loopback name with a port is longer, and longer hosts are not cached
HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::\d*)?")


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """The Host headers that a server accepts.

    Attributes:
        loopback_only: whether the host must be `localhost`, 127.0.0.0/8 or [::1], with any port; else every host is
            accepted, since a container or proxy may reach the server by any name.
    """

    loopback_only: bool

    def check(self, hosts: Sequence[str], http_version: str) -> None:
        """Check the Host headers of a request.

        Args:
            hosts: the value of each Host header.
            http_version: `1.1` requires one header, `1.0` allows none.

        Raises:
            InvalidRequest: there is more than one header, or none.
            Misdirected: the host is not one of the server's.
        """
        if len(hosts) > 1 or (not hosts and http_version != "1.0"):
            raise InvalidRequest(f"send exactly one; there are {len(hosts)}", field="Host")
        if hosts and self.loopback_only and not (len(hosts[0]) <= MAX_LENGTH and _is_loopback_host(hosts[0])):
            raise Misdirected(
                f"is {hosts[0][:MAX_LENGTH]!r}; this server listens on a loopback address and answers to "
                "localhost, 127.0.0.1 and [::1] alone",
                field="Host",
            )


def is_loopback(name: str) -> bool:
    """Return whether a name or an IP address without brackets is that of a loopback interface."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


@functools.lru_cache(256)
def _is_loopback_host(host: str) -> bool:
    found = HOST.fullmatch(host)
    return found is not None and is_loopback(found["ipv6"] or found["name"] or "")
