"""Check KServe manifests against the classes of KServe's SDK and of Kubernetes: `python manifests.py FILE...`.

The classes have each field's name and type. They are inspected, not instantiated: the SDK does not parse containers
with the Kubernetes client that it installs.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client
import yaml

CLASSES = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
SCALARS = {"str": str, "bool": bool, "int": int, "float": float}


def faults(value: Any, kind: str, path: str) -> Iterator[str]:
    """Yield the fields of a value that its type does not have."""
    if several := re.fullmatch(r"list\[(.*)\]", kind, re.IGNORECASE):
        if not isinstance(value, list):
            yield f"{path}: must be a list"
        for i, each in enumerate(value if isinstance(value, list) else []):
            yield from faults(each, several[1], f"{path}[{i}]")
    elif kind in SCALARS:
        if type(value) is not SCALARS[kind]:
            yield f"{path}: must be {kind}, not {value!r}"
    elif kind == "object" or kind.lower().startswith("dict"):
        return
    else:
        found = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
        types = {found.attribute_map[name]: each for name, each in found.openapi_types.items()}
        for name, each in value.items():
            if name in types:
                yield from faults(each, types[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}: {kind} has no such field"


broken = [
    fault
    for path in sys.argv[1:]
    for written in [yaml.safe_load(Path(path).read_text())]
    for fault in faults(written, CLASSES[written["kind"]], Path(path).name)
]
sys.exit("\n".join(broken) if broken else 0)
