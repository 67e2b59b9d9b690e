"""Where the nodes of a run were computed, read from onnxruntime's profile."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOATS = ("float", "float16", "bfloat16", "double")
COPIES = ("MemcpyToHost", "MemcpyFromHost")
END = "_kernel_time"


@dataclass(frozen=True)
class NodeRun:
    """One node of a run.

    Attributes:
        name: of the node.
        operator: its type.
        provider: the execution provider that computed it.
        of_floats: whether it has an output of floating point; otherwise it computes sizes, indices or conditions.
    """

    name: str
    operator: str
    provider: str
    of_floats: bool


@dataclass(frozen=True)
class Placement:
    """The nodes of a graph's run by place.

    Attributes:
        on_device: the operators computed by the provider that was asked for.
        floats_elsewhere: operators with an output of floating point that another provider computed.
        sizes_elsewhere: operators that another provider computed for sizes, indices and conditions.
        copies: copies between the memories of the device and of the host within the graph.
    """

    on_device: Counter[str]
    floats_elsewhere: Counter[str]
    sizes_elsewhere: Counter[str]
    copies: int

    @classmethod
    def of(cls, nodes: list[NodeRun], provider: str) -> "Placement":
        """Sort a run's nodes by place."""
        computed = [node for node in nodes if node.operator not in COPIES]
        elsewhere = [node for node in computed if node.provider != provider]
        return cls(
            Counter(node.operator for node in computed if node.provider == provider),
            Counter(node.operator for node in elsewhere if node.of_floats),
            Counter(node.operator for node in elsewhere if not node.of_floats),
            len(nodes) - len(computed),
        )


def read_profile(path: Path) -> list[NodeRun]:
    """Read the nodes of a profile, each once however often it ran.

    Raises:
        ValueError: the profile names no provider for a node, or has no nodes.
    """
    runs = {}
    for event in json.loads(path.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(END):
            arguments = event["args"]
            if not arguments.get("provider"):
                raise ValueError(f"the profile does not say where {event['name']} was computed")
            name = event["name"].removesuffix(END)
            runs[name] = NodeRun(name, arguments["op_name"], arguments["provider"], _of_floats(arguments))
    if not runs:
        raise ValueError("the profile has no nodes")
    return list(runs.values())


def _of_floats(arguments: dict[str, Any]) -> bool:
    """Return whether an output is of floating point; True where the profile does not say."""
    outputs = arguments.get("output_type_shape")
    return not outputs or any(kind in FLOATS for output in outputs for kind in output)
