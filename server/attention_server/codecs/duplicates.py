"""The refusal of JSON bodies in which an object has a name twice."""

from attention_proto.duplicates import duplicate_name, has_duplicates

from attention_server.errors import InvalidRequest

NAMED_BYTES = 2**20  # the largest body in which the duplicate name is searched


def refuse_duplicates(body: bytes, content: object) -> None:
    """Refuse a body with a duplicate name.

    Args:
        body: valid JSON.
        content: the parsed and validated body: a list that begins with a number has numbers only.

    Raises:
        InvalidRequest: an object has a name twice.
    """
    if not has_duplicates(body, content):
        return
    name = duplicate_name(body, content) if len(body) <= NAMED_BYTES else None
    raise InvalidRequest(
        "stands twice in one object" if name else "a name stands twice in one object", field=name or ""
    )
