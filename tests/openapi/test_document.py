"""The OpenAPI document is good for generators, wherever it is extended."""

import json
from itertools import chain

import pytest

from tests.openapi.test_generated_clients import DOCUMENT

document = json.loads(DOCUMENT.read_text())
SCHEMAS = document["components"]["schemas"]
OPERATIONS = {o["operationId"]: o for methods in document["paths"].values() for o in methods.values()}


def nodes(value):
    """Yield every object within a value, and itself."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(each)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_json_body_is_a_named_schema(operation):
    """A request's and an answer's JSON is a reference to a schema with a name, from which generators make a type."""
    contents = [
        body["content"]
        for body in [operation.get("requestBody"), *operation["responses"].values()]
        if body and "content" in body
    ]
    for content in contents:
        if "application/json" in content:
            assert list(content["application/json"]["schema"]) == ["$ref"]


def test_every_reference_is_to_a_component():
    """References name components, no places within one: generators find no further ones."""
    found = [node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)]
    assert len(found) > 100
    for reference in found:
        _, kind, name = reference.removeprefix("#/").split("/")
        assert name in document["components"][kind], reference


def test_every_enumeration_has_a_name():
    """An enumeration is a schema of its own, so that generators name it once."""
    inner = chain.from_iterable(
        nodes(each) for schema in SCHEMAS.values() for key, each in schema.items() if key != "enum"
    )
    assert not [node for node in inner if "enum" in node]
    assert sum("enum" in schema for schema in SCHEMAS.values()) >= 8


def test_no_default_makes_a_property_required():
    """A default stands in a property's words: openapi-typescript takes one with `default` for always there."""
    assert not [node for node in nodes(document) if "default" in node]


def test_no_choice_between_a_string_and_json():
    """Where an object or a list is sent, a bare string is no alternative of the schema."""
    for node in nodes(SCHEMAS):
        kinds = [each.get("type", "object") for each in node.get("oneOf", node.get("anyOf", []))]
        assert not ("string" in kinds and {"object", "array"} & set(kinds)), node
