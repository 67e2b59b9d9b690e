"""tritonclient.grpc: single requests, a stream, compression and its whole interface."""

import queue

import tritonclient.grpc as module
from google.protobuf.json_format import MessageToDict
from scenario import CASES, Case, addresses, drawn, report
from triton_scenario import names, outputs, request, same
from tritonclient.utils import InferenceServerException

_, address = addresses()
client = module.InferenceServerClient(address)
answers = {name: outputs(client.infer(**request(module, case))) for name, case in CASES.items()}
facts = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": [
        client.is_model_ready("multi"),
        client.is_model_ready("self", "2"),
        client.is_model_ready("nobody"),
    ],
    "server_metadata": MessageToDict(client.get_server_metadata()),
    "metadata": names(client.get_model_metadata("multi-head", as_json=True)),
    "statistics": client.get_inference_statistics("multi", "1").model_stats[0].inference_count,
    "config": client.get_model_config("multi").config.name,
    "index": [(each.name, each.version, each.state) for each in client.get_model_repository_index().models],
}
for algorithm in ("gzip", "deflate"):
    compressed = client.infer(**request(module, CASES["lengths"]), compression_algorithm=algorithm)
    facts[algorithm] = same(outputs(compressed), answers["lengths"])
done: queue.Queue = queue.Queue()
for i in range(32):
    asked = request(module, CASES["lengths"], request_id=str(i))
    client.async_infer(**asked, callback=lambda result, error: done.put((result, error)))
got = [done.get(timeout=60) for _ in range(32)]
facts["concurrent"] = {result.get_response().id for result, _ in got} == {str(i) for i in range(32)} and all(
    error is None and same(outputs(result), answers["lengths"]) for result, error in got
)
client.start_stream(callback=lambda result, error: done.put((result, error)))
wrong = Case("multi", {"query": drawn(1, 2, 3, seed=9)})
for i, (name, case) in enumerate(CASES.items()):
    client.async_stream_infer(**request(module, case, request_id=name))
    if i == 1:
        client.async_stream_infer(**request(module, wrong, request_id="wrong"))
streamed = [done.get(timeout=60) for _ in range(len(CASES) + 1)]
client.stop_stream()
facts["stream"] = [result.get_response().id if error is None else "error" for result, error in streamed]
facts["stream_error"] = streamed[2][1].message()
facts["stream_same"] = all(
    same(outputs(result), answers[result.get_response().id]) for result, error in streamed if error is None
)
version = client.infer(**request(module, Case("self", {"query": drawn(1, 2, 12, seed=9)}), model_version="1"))
facts["version"] = version.get_response().model_version
try:
    client.infer(**request(module, wrong))
except InferenceServerException as error:
    facts["error"] = [error.status(), error.message()]
try:
    client.get_system_shared_memory_status()
except InferenceServerException as error:
    facts["unimplemented"] = error.status()
large = Case("dot", {"query": drawn(1, 1500, 1000, seed=10)}, ("scores",))  # 5.7 MiB there, 8.6 back
facts["large"] = client.infer(**request(module, large)).as_numpy("scores").shape
report(answers, facts)
