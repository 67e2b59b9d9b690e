"""JSON Schema, in the dialect of OpenAPI 3.0, written short."""

from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
BINARY: Schema = {"type": "string", "format": "binary"}
BASE64: Schema = {"type": "string", "format": "byte"}
RANKS = (1, 2, 3)  # of a tensor of one sequence


def ref(name: str) -> Schema:
    """Return a reference to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def described(schema: Schema, words: str) -> Schema:
    """Return a schema with a description; beside a reference, OpenAPI 3.0 would ignore it."""
    return {"allOf": [schema], "description": words} if "$ref" in schema else schema | {"description": words}


def array(items: Schema, words: str = "") -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items} | ({"description": words} if words else {})


def nested(items: Schema, ranks: Iterable[int] = RANKS) -> list[Schema]:
    """Return the schemas of nested lists, one for each rank."""
    schemas = []
    for rank in ranks:
        schema = items
        for _ in range(rank):
            schema = array(schema)
        schemas.append(schema)
    return schemas


def enumeration(values: Iterable[str], words: str = "") -> Schema:
    """Return the schema of one of some strings; it belongs among the named schemas, for generators name it."""
    return {"type": "string", "enum": list(values)} | ({"description": words} if words else {})


def integer(minimum: int | None = None, words: str = "", maximum: int | None = None) -> Schema:
    """Return the schema of an integer."""
    bounds = {"minimum": minimum, "maximum": maximum}
    return INTEGER | {k: v for k, v in bounds.items() if v is not None} | ({"description": words} if words else {})


def answer(properties: Mapping[str, Schema], required: Iterable[str] | None = None, words: str = "") -> Schema:
    """Return the schema of an object that the server sends; it may gain properties.

    Args:
        properties: by name.
        required: those that are always sent; None for all.
        words: its description.
    """
    always = list(properties if required is None else required)
    start: Schema = {"type": "object"} | ({"description": words} if words else {})
    return start | ({"required": always} if always else {}) | {"properties": dict(properties)}


def request(properties: Mapping[str, Schema], required: Iterable[str] = (), words: str = "") -> Schema:
    """Return the schema of an object that a caller sends; the server refuses an unknown property."""
    return answer(properties, required, words) | {"additionalProperties": False}
