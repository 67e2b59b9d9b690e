"""The Host header of HTTP/1.1, checked against the address that the server listens on.

A web page can point a name of its own at 127.0.0.1 after it has loaded (DNS rebinding). The browser then treats the
server as part of that page's site and lets the page read every response. Its requests name the page's host, though: a
server on a loopback address answers to loopback names alone, and any server to a list of names where it has one.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from attention_server.errors import InvalidRequest, Misdirected

MAX_LENGTH = 260  # characters of a name with a port; longer hosts are not cached
HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::\d{0,5})?")


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """The Host headers that a server accepts.

    Attributes:
        loopback_only: whether the host must be `localhost`, 127.0.0.0/8 or [::1], with any port; else every host is
            accepted, since a container or proxy may reach the server by any name.
        names: accepted beside the loopback's, with any port; empty for no list.
    """

    loopback_only: bool
    names: frozenset[str] = frozenset()

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
        if hosts and (self.loopback_only or self.names) and not self._accepts(hosts[0]):
            known = ", ".join(("localhost", "127.0.0.1", "[::1]", *sorted(self.names)))
            raise Misdirected(
                f"is {hosts[0][:64]!r}; this server answers to {known} (--allowed-hosts)",
                field="Host",
            )

    def _accepts(self, host: str) -> bool:
        if len(host) > MAX_LENGTH:
            return False
        name = _name_of(host)
        return name is not None and (is_loopback(name) or name in self.names)


def is_loopback(name: str) -> bool:
    """Return whether a name or an IP address without brackets is that of a loopback interface."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


@functools.lru_cache(256)
def _name_of(host: str) -> str | None:
    """Return the name or address in a Host header, in lower case and without port and brackets; None for no host."""
    found = HOST.fullmatch(host)
    return None if found is None else (found["ipv6"] or found["name"] or "").lower()
