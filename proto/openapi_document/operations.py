"""Paths and operations of the REST API."""

from collections.abc import Iterable

from openapi_document.components import REQUEST_ID, SERVER_TIMING, Json, media_types, usual_response
from openapi_document.schema import BINARY, STRING, Schema, ref

INFER_WORDS = (
    "Inputs, outputs and parameters are described in docs/open-inference-protocol.md; GET of the model lists them. "
    "With binary_data_output, or binary_data of an output, or binary_data_size of an input, the bytes of "
    "tensors follow the JSON."
)
# Operations that need no credentials and have no limit.
PUBLIC = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")


def _ok(schema: Schema, words: str = "OK", headers: Json | None = None, **other: Schema) -> Json:
    kinds = {f"application/{kind.replace('_', '-')}": each for kind, each in other.items()}
    return {"description": words} | ({"headers": headers} if headers else {}) | {"content": media_types(schema, kinds)}


def _operation(
    name: str,
    summary: str,
    tag: str,
    ok: Json,
    errors: Iterable[int | tuple[int, Json]] = (),
    *,
    parameters: Iterable[str] = (),
    body: Json | None = None,
    words: str = "",
) -> Json:
    """Return an operation.

    Args:
        name: the operationId.
        summary: one line.
        tag: the section of the document.
        ok: the response 200.
        errors: the codes of the error responses; with a response where it differs from the usual one of the code.
        parameters: names among PARAMETERS.
        body: the request's body.
        words: a description.
    """
    responses: Json = {"200": ok}
    for error in errors:
        code, response = error if isinstance(error, tuple) else (error, None)
        responses[str(code)] = response or usual_response(tag, code)
    operation: Json = {"operationId": name, "summary": summary, "tags": [tag]}
    operation |= {"description": words} if words else {}
    if chosen := [{"$ref": f"#/components/parameters/{each}"} for each in parameters]:
        operation["parameters"] = chosen
    return operation | ({"requestBody": body} if body else {}) | {"responses": responses}


def _with_access_errors(path: str, method: str, operation: Json) -> Json:
    """Return an operation with the errors that its request meets before its handler, and those of the caller's rights.

    Every method but GET is refused to pages of other sites; of those that GET only memories need a right.
    """
    codes = [421] if path in PUBLIC else [401, 421, 429]
    if method != "get" or "/memories" in path:
        codes.append(403)
    (tag,) = operation["tags"]
    responses = operation["responses"] | {str(code): usual_response(tag, code) for code in codes}
    return operation | {"responses": dict(sorted(responses.items()))}


def _body(schema: str, examples: Json | None = None, other: str = "", *, required: bool = True) -> Json:
    content = media_types(ref(schema), {other: BINARY} if other else None)
    if examples:
        content["application/json"]["examples"] = examples
    return {"required": required, "content": content}


ATTEND_EXAMPLES: Json = {
    "text": {
        "summary": "Text, to the embedded multi-head",
        "value": {"text": "I gave my cat Tater a toy", "outputs": [{"name": "weights"}, {"name": "predictions"}]},
    },
    "vectors": {
        "summary": "Vectors, to the embedded dot-product",
        "value": {"query": [[1, 0], [0, 1], [1, 1]], "outputs": [{"name": "output"}, {"name": "weights"}]},
    },
}
TOKENIZE_EXAMPLES: Json = {"text": {"value": {"inputs": [{"text": "I gave my cat Tater a toy"}]}}}
INFER_EXAMPLES: Json = {
    "vectors": {
        "value": {
            "inputs": [{"name": "query", "datatype": "FP32", "shape": [1, 2, 3], "data": [1, 0, 0, 0, 1, 0]}],
            "outputs": [{"name": "output"}, {"name": "weights", "parameters": {"top_k": 1}}],
            "parameters": {"causal": "top_left"},
        }
    },
    "text": {
        "value": {
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["I gave my cat Tater a toy"]}],
            "outputs": [{"name": "weights"}, {"name": "tokens"}, {"name": "predictions"}],
        }
    },
}


def paths() -> dict[str, Json]:
    """Return the operations by path and method."""
    found = _attention() | _embeddings() | _memories() | _inference() | _health()
    return {
        path: {method: _with_access_errors(path, method, operation) for method, operation in methods.items()}
        for path, methods in found.items()
    }


def _attention() -> dict[str, Json]:
    found: dict[str, Json] = {}
    for path, parameters, name, summary in (
        ("", ["model"], "attend", "Attend over one or more sequences"),
        (
            "/versions/{version}",
            ["model", "version"],
            "attendVersion",
            "Attend over one or more sequences, with a chosen version of the model",
        ),
    ):
        found[f"/v1/models/{{model}}{path}:attend"] = {
            "post": _operation(
                name,
                summary,
                "attention",
                _ok(
                    ref("AttendResponse"),
                    "One result a sequence, in order.",
                    REQUEST_ID | SERVER_TIMING,
                    x_protobuf=BINARY,
                ),
                (400, 404, 413, 500, 503, 504),
                parameters=[*parameters, "timeout", "requestId"],
                body=_body("AttendRequest", ATTEND_EXAMPLES, "application/x-protobuf"),
            )
        }
        found[f"/v1/models/{{model}}{path}:tokenize"] = {
            "post": _operation(
                name.replace("attend", "tokenize"),
                summary.replace("Attend over one or more sequences", "Return the tokens of texts"),
                "attention",
                _ok(ref("TokenizeResponse"), "The tokens of each text, in order.", REQUEST_ID, x_protobuf=BINARY),
                (400, 404, 413, 500, 503, 504),
                parameters=[*parameters, "timeout", "requestId"],
                body=_body("TokenizeRequest", TOKENIZE_EXAMPLES, "application/x-protobuf"),
            )
        }
    for path, parameters, name, summary, schema in (
        ("", [], "listModels", "List the models", "ModelList"),
        ("/{model}", ["model"], "getModel", "Describe a model", "Model"),
        (
            "/{model}/versions/{version}",
            ["model", "version"],
            "getModelVersion",
            "Describe a version of a model",
            "Model",
        ),
    ):
        ok = _ok(ref(schema), x_protobuf=BINARY)
        found[f"/v1/models{path}"] = {
            "get": _operation(name, summary, "models", ok, (400, 404, 500, 503), parameters=parameters)
        }
    return found


def _embeddings() -> dict[str, Json]:
    return {
        "/v1/embeddings": {
            "post": _operation(
                "createEmbeddings",
                "Embed one or more texts, in the form of OpenAI's API",
                "embeddings",
                _ok(ref("EmbeddingsResponse"), "One embedding a text, in order.", REQUEST_ID | SERVER_TIMING),
                (400, 404, 413, 500, 503, 504),
                parameters=["timeout", "requestId"],
                body=_body("EmbeddingsRequest"),
                words="The pooled `hidden` of the model's last layer, of length 1 where the checkpoint says so.",
            )
        }
    }


def _memories() -> dict[str, Json]:
    return {
        "/v1/models/{model}/memories": {
            "post": _operation(
                "createMemory",
                "Project a key (and value) sequence once and keep it",
                "memories",
                _ok(ref("Memory"), "The memory is kept; send its id as `memory`."),
                (400, 404, 413, 500, 503, 504),
                parameters=["model", "timeout", "requestId"],
                body=_body("MemoryRequest"),
            ),
            "get": _operation(
                "listMemories",
                "List a model's memories",
                "memories",
                _ok(ref("MemoryList"), "The most recently used first."),
                (404, 500, 503),
                parameters=["model"],
            ),
        },
        "/v1/models/{model}/memories/{id}": {
            "get": _operation(
                "getMemory", "Describe a memory", "memories", _ok(ref("Memory")), (404, 500), parameters=["model", "id"]
            ),
            "delete": _operation(
                "deleteMemory",
                "Delete a memory",
                "memories",
                _ok(ref("Empty"), "The memory is deleted."),
                (404, 500),
                parameters=["model", "id"],
            ),
        },
    }


def _inference() -> dict[str, Json]:
    return (
        _server()
        | _repository()
        | _model("", ["model"], "")
        | _model("/versions/{version}", ["model", "version"], "Version")
    )


def _server() -> dict[str, Json]:
    loading = (503, _ok(ref("Ready"), "Loading or stopping."))
    return {
        "/v2": {
            "get": _operation(
                "inferenceServer", "Describe the server", "inference", _ok(ref("InferenceServer")), (500,)
            )
        },
        "/v2/health/live": {
            "get": _operation("inferenceLive", "Whether the process is alive", "inference", _ok(ref("Live")), (500,))
        },
        "/v2/health/ready": {
            "get": _operation(
                "inferenceReady", "Whether requests are answered", "inference", _ok(ref("Ready")), (loading, 500)
            )
        },
    }


def _repository() -> dict[str, Json]:
    found: dict[str, Json] = {
        "/v2/repository/index": {
            "post": _operation(
                "repositoryIndex",
                "List every version in the repository and its state",
                "inference",
                _ok(ref("RepositoryIndex")),
                (400, 500),
                body=_body("RepositoryIndexRequest", required=False),
            )
        }
    }
    for verb, summary, schema in (
        ("load", "Load a model, or load it anew", "LoadRequest"),
        ("unload", "Unload a model", "UnloadRequest"),
    ):
        found[f"/v2/repository/models/{{model}}/{verb}"] = {
            "post": _operation(
                f"{verb}Model",
                summary,
                "inference",
                _ok(ref("Empty")),
                (400, 404, 501, 503, 500),
                parameters=["model"],
                body=_body(schema, required=False),
            )
        }
    summary = "Count the requests of every version and the time that they took"
    ok = _ok(ref("ModelStatistics"))
    found["/v2/models/stats"] = {"get": _operation("statistics", summary, "inference", ok, (400, 404, 503, 500))}
    return found


def _model(under: str, parameters: list[str], suffix: str) -> dict[str, Json]:
    """Return the operations of a model, or of a version of it."""
    root = f"/v2/models/{{model}}{under}"
    not_now = (503, _ok(ref("Ready"), "The model is in the repository and does not answer now."))
    metadata, config = (
        "Describe a model's inputs and outputs",
        "Describe a model's inputs and outputs, in Triton's form",
    )
    name, summary = ("versionStatistics", "a version") if suffix else ("modelStatistics", "a model")

    def get(
        name: str, summary: str, schema: str, errors: Iterable[int | tuple[int, Json]] = (400, 404, 503, 500)
    ) -> Json:
        return {"get": _operation(name, summary, "inference", _ok(ref(schema)), errors, parameters=parameters)}

    return {
        root: get(f"inferenceMetadata{suffix}", metadata, "ModelMetadata"),
        f"{root}/ready": get(
            f"inferenceModelReady{suffix}", "Whether a model answers", "Ready", (not_now, 400, 404, 500)
        ),
        f"{root}/config": get(f"inferenceConfig{suffix}", config, "ModelConfig"),
        f"{root}/stats": get(name, f"Count the requests of {summary} and the time that they took", "ModelStatistics"),
        f"{root}/infer": {
            "post": _operation(
                f"infer{suffix}",
                "Compute outputs of a dense batch",
                "inference",
                _ok(ref("InferResponse"), headers=SERVER_TIMING, octet_stream=BINARY),
                (400, 404, 413, 499, 503, 504, 500),
                parameters=[*parameters, "headerLength", "contentEncoding", "timeout"],
                body=_body("InferRequest", INFER_EXAMPLES, "application/octet-stream"),
                words=INFER_WORDS,
            )
        },
    }


def _health() -> dict[str, Json]:
    loading = (503, _ok(ref("Health"), "Loading or stopping."))
    text = {
        "description": "The text format, version 0.0.4; docs/observability.md has the names.",
        "content": {"text/plain": {"schema": STRING}},
    }
    ready = "Whether every model is loaded and warmed"
    return {
        "/healthz": {
            "get": _operation("alive", "Whether the process is alive", "health", _ok(ref("Health"), "It is."))
        },
        "/readyz": {"get": _operation("ready", ready, "health", _ok(ref("Health"), "Ready."), (loading,))},
        "/metrics": {"get": _operation("metrics", "Metrics in the format of Prometheus", "health", text)},
    }
