"""Requests to the model that the repository's tests publish, load and unload."""

import numpy as np
from attention_server.auth.callers import ALL_RIGHTS
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Request, Sequence
from serving import HANG

from tests.server.spoil import change_weights

QUERY = np.linspace(-1, 1, 5 * 24, dtype=np.float32).reshape(5, 24)
ASKED = ["output", "weights", "q", "k", "v", "heads"]
POLLING = ("--repository-mode", "poll", "--repository-poll", 0.02)
POLL = {"repository_mode": "poll"}
EXPLICIT = {"repository_mode": "explicit"}


def someone() -> CallContext:
    return CallContext("test", rights=ALL_RIGHTS)


def other_weights(folder):
    change_weights(folder, 1.5)


def ask(service, version=0, model="multi"):
    """Ask the core for an output, and which version gave it."""
    response = service.submit(Request(model, version, (Sequence(query=QUERY),)), someone()).result(HANG)
    return response.version, response.results[0].outputs["output"]


def state(service, version, model="multi"):
    """Return the state of a version in the index: state and reason."""
    (entry,) = [each for each in service.index() if (each.name, each.version) == (model, version)] or [None]
    return entry and (entry.state, entry.reason)


def version_of(transport):
    return transport.attend("multi", query=QUERY)["version"]
