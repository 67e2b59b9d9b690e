"""When a certificate expires, read from its DER (RFC 5280, 4.1), which Python's `ssl` shows for authorities only."""

import ssl
from datetime import UTC, datetime

EXPLICIT_VERSION, UTC_TIME = 0xA0, 0x17
END = "-----END CERTIFICATE-----"


def expiry(chain: bytes) -> float:
    """Return when the first certificate of a PEM file expires, in seconds since 1970.

    Raises:
        ValueError: the file has no certificate.
    """
    text = chain.decode("ascii", "replace")
    begin = text.find("-----BEGIN CERTIFICATE-----")
    try:
        der = ssl.PEM_cert_to_DER_cert(text[begin : text.index(END) + len(END)])
        fields = _fields(_fields(_fields(der)[0][1])[0][1])  # of the part that is signed
        validity = fields[3 + (fields[0][0] == EXPLICIT_VERSION)][1]
        tag, after = _fields(validity)[1]
        form = "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ"
        return datetime.strptime(after.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
    except IndexError as error:
        raise ValueError("no certificate") from error


def _fields(content: bytes) -> list[tuple[int, bytes]]:
    """Return the tag and content of each element, one after another."""
    fields = []
    at = 0
    while at < len(content):
        tag, size = content[at], content[at + 1]
        at += 2
        if size & 0x80:  # the length is in so many bytes
            count = size & 0x7F
            size = int.from_bytes(content[at : at + count], "big")
            at += count
        fields.append((tag, content[at : at + size]))
        at += size
    return fields
