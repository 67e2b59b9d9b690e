"""Prints every field and method of Triton's messages: name, number, kind. For a look at whether ours are theirs."""

import json

from tritonclient.grpc import model_config_pb2, service_pb2


def fields(message) -> dict[str, list]:
    own = {
        f"{message.full_name}.{field.name}": [field.number, field.type, field.is_repeated] for field in message.fields
    }
    for nested in message.nested_types:
        own |= fields(nested)
    return own


found: dict[str, list] = {}
for file in (service_pb2, model_config_pb2):
    for message in file.DESCRIPTOR.message_types_by_name.values():
        found |= fields(message)
service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
methods = {
    each.name: [each.input_type.full_name, each.output_type.full_name, each.client_streaming, each.server_streaming]
    for each in service.methods
}
types = {each.name: each.number for each in model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values}
print(json.dumps({"fields": found, "methods": methods, "types": types}))
