"""The log of loaded versions: the device on which the graphs compute."""

import structlog

from attention_server.inference.model import LoadedModel

log = structlog.get_logger()


def log_loaded(model: LoadedModel) -> None:
    """Log a loaded version, and each graph with nodes on the CPU while the model's device is a GPU."""
    log.info(
        "model loaded",
        model=model.name,
        version=model.version,
        block=model.manifest.block,
        device=model.device,
        nodes=model.nodes,
    )
    for name, graph in model.graphs.items():
        if model.device != "cpu" and (operators := graph.nodes.get("cpu")):
            log.warning(
                "nodes run on the CPU", model=model.name, version=model.version, graph=name, operators=dict(operators)
            )
