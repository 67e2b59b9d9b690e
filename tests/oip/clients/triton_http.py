"""tritonclient.http, over its two forms, compression and its whole interface."""

import tritonclient.http as module
from scenario import CASES, Case, addresses, drawn, report
from triton_scenario import names, outputs, request, same
from tritonclient.utils import InferenceServerException

rest, _ = addresses()
client = module.InferenceServerClient(rest, concurrency=8)
answers = {name: outputs(client.infer(**request(module, case))) for name, case in CASES.items()}
facts = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": [
        client.is_model_ready("multi"),
        client.is_model_ready("self", "2"),
        client.is_model_ready("nobody"),
    ],
    "server_metadata": client.get_server_metadata(),
    "metadata": names(client.get_model_metadata("multi-head")),
    "statistics": client.get_inference_statistics("multi", "1")["model_stats"][0]["inference_count"],
    "config": client.get_model_config("multi")["name"],
    "index": [(each["name"], each["version"], each["state"]) for each in client.get_model_repository_index()],
    "json": all(
        same(outputs(client.infer(**request(module, case, binary=False))), answers[name])
        for name, case in CASES.items()
        if name != "half"
    ),
}
for algorithm in ("gzip", "deflate"):
    compressed = client.infer(
        **request(module, CASES["lengths"]),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    facts[algorithm] = same(outputs(compressed), answers["lengths"])
pending = [client.async_infer(**request(module, CASES["lengths"], request_id=str(i))) for i in range(32)]
got = [each.get_result() for each in pending]
facts["concurrent"] = [each.get_response()["id"] for each in got] == [str(i) for i in range(32)] and all(
    same(outputs(each), answers["lengths"]) for each in got
)
version = client.infer(**request(module, Case("self", {"query": drawn(1, 2, 12, seed=9)}), model_version="1"))
facts["version"] = version.get_response()["model_version"]
try:
    client.infer(**request(module, Case("multi", {"query": drawn(1, 2, 3, seed=9)})))
except InferenceServerException as error:
    facts["error"] = [error.status(), error.message()]
try:
    client.get_system_shared_memory_status()
except InferenceServerException as error:
    facts["unimplemented"] = error.status()
large = Case("dot", {"query": drawn(1, 1500, 1000, seed=10)}, ("scores",))  # 5.7 MiB there, 8.6 back
facts["large"] = client.infer(**request(module, large)).as_numpy("scores").shape
report(answers, facts)
