"""Schemas of messages of the contract in their JSON form, with the comments of the .proto file as words."""

from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet

from openapi_document.schema import (
    BASE64,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    Schema,
    answer,
    array,
    described,
    enumeration,
    ref,
)

CONTRACT = "attention/v1/attention.proto"
ROOT = "Model"
# Properties that every answer has; protobuf's JSON leaves out a field with its default value, such as 0.
REQUIRED = {
    "Model": ("name", "version", "versions", "device", "manifest"),
    "Manifest": ("block", "layers"),
    "Layer": ("name", "heads"),
    "File": ("name", "sha256"),
    "Predictor": ("name", "rows", "labels"),
}
_MESSAGE, _ENUM, _ENUM_IN_MESSAGE, _FIELD, _VALUE = 4, 5, 4, 2, 2  # field numbers of descriptor.proto, as in its paths
Path_ = tuple[int, ...]
SCALARS: dict[int, Schema] = {
    FieldDescriptorProto.TYPE_STRING: STRING,
    FieldDescriptorProto.TYPE_BYTES: BASE64,
    FieldDescriptorProto.TYPE_BOOL: BOOLEAN,
    FieldDescriptorProto.TYPE_DOUBLE: NUMBER,
    FieldDescriptorProto.TYPE_FLOAT: NUMBER,
    FieldDescriptorProto.TYPE_INT32: INTEGER,
    FieldDescriptorProto.TYPE_UINT32: INTEGER,
    FieldDescriptorProto.TYPE_INT64: STRING | {"format": "int64"},  # JSON's numbers have 53 bits
    FieldDescriptorProto.TYPE_UINT64: STRING | {"format": "uint64"},
}


def schemas(descriptors: Path) -> dict[str, Schema]:
    """Return the schemas of a model's description and of every message within it, by name.

    Args:
        descriptors: a FileDescriptorSet with source info.
    """
    found = FileDescriptorSet.FromString(descriptors.read_bytes())
    (file,) = (each for each in found.file if each.name == CONTRACT)
    comments = {tuple(each.path): " ".join(each.leading_comments.split()) for each in file.source_code_info.location}
    messages = {message.name: (message, (_MESSAGE, i)) for i, message in enumerate(file.message_type)}
    enums = {each.name: _enumeration(each, (_ENUM, i), comments) for i, each in enumerate(file.enum_type)}
    made: dict[str, Schema] = {}
    waiting = [ROOT]
    while waiting:
        name = waiting.pop(0)
        if name in enums:
            made[name] = enums[name]
        elif name not in made:
            message, path = messages[name]
            made[name], used = _message(message, path, comments)
            made |= _enumerations(message, path, comments)
            waiting += used
    return made


def _message(message: DescriptorProto, path: Path_, comments: dict[Path_, str]) -> tuple[Schema, list[str]]:
    """Return a message's schema, and the names of the messages, and of the file's enumerations, that it uses."""
    maps = {each.name: each for each in message.nested_type if each.options.map_entry}
    properties: dict[str, Schema] = {}
    used: list[str] = []
    for i, field in enumerate(message.field):
        schema, uses = _field(field, maps, message.name)
        properties[field.name] = described(schema, comments[*path, _FIELD, i])
        used += uses
    return answer(properties, REQUIRED.get(message.name, ()), comments[path]), used


def _field(field: FieldDescriptorProto, maps: dict[str, DescriptorProto], owner: str) -> tuple[Schema, list[str]]:
    name = field.type_name.rpartition(".")[2]
    if name in maps:
        schema, used = _field(maps[name].field[1], maps, owner)
        return {"type": "object", "additionalProperties": schema}, used
    used = []
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        schema, used = ref(name), [name]
    elif field.type == FieldDescriptorProto.TYPE_ENUM and field.type_name.endswith(f".{owner}.{name}"):
        schema = ref(owner + name)
    elif field.type == FieldDescriptorProto.TYPE_ENUM:
        schema, used = ref(name), [name]
    else:
        schema = SCALARS[field.type]
    return (array(schema) if field.label == FieldDescriptorProto.LABEL_REPEATED else schema), used


def _enumerations(message: DescriptorProto, path: Path_, comments: dict[Path_, str]) -> dict[str, Schema]:
    return {
        message.name + each.name: _enumeration(each, (*path, _ENUM_IN_MESSAGE, i), comments)
        for i, each in enumerate(message.enum_type)
    }


def _enumeration(each: EnumDescriptorProto, path: Path_, comments: dict[Path_, str]) -> Schema:
    values = "; ".join(f"{value.name}: {comments[*path, _VALUE, i]}" for i, value in enumerate(each.value))
    return enumeration([value.name for value in each.value], f"{comments[path]} {values}")
