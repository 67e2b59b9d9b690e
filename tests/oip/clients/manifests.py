"""Reads KServe manifests into the SDK's own classes and writes them back: `python manifests.py FILE...`.

What the SDK does not know is lost on the way, so what is missing afterwards is a field that KServe has not.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import kserve.models
import kubernetes.client
import yaml
from kserve.api_client import ApiClient

CLASSES = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}

for name in dir(kubernetes.client):
    if not hasattr(kserve.models, name):  # where the SDK looks for Kubernetes' classes too, and has not put them
        setattr(kserve.models, name, getattr(kubernetes.client, name))


def kept(written, read) -> bool:
    """Return whether all that was written was read; the SDK may fill in defaults."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(name in read and kept(written[name], read[name]) for name in written)
    if isinstance(written, list):
        return len(written) == len(read) and all(map(kept, written, read))
    return written == read


client = ApiClient()
for path in sys.argv[1:]:
    written = yaml.safe_load(Path(path).read_text())
    made = client.deserialize(SimpleNamespace(data=json.dumps(written)), CLASSES[written["kind"]])
    read = client.sanitize_for_serialization(made)
    if not kept(written, read):
        sys.exit(f"{path}: written {written}\nread {read}")
