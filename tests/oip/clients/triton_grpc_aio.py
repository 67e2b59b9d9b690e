"""tritonclient.grpc.aio: requests at once, and a stream."""

import asyncio

import tritonclient.grpc as classes
import tritonclient.grpc.aio as module
from scenario import CASES, Case, addresses, drawn, report
from triton_scenario import names, outputs, request, same
from tritonclient.utils import InferenceServerException


async def main() -> None:
    _, address = addresses()
    async with module.InferenceServerClient(address) as client:
        got = await asyncio.gather(*(client.infer(**request(classes, case)) for case in CASES.values()))
        answers = {name: outputs(each) for name, each in zip(CASES, got, strict=True)}
        repeated = await asyncio.gather(*(client.infer(**request(classes, CASES["lengths"])) for _ in range(32)))

        async def requests():
            for name, case in CASES.items():
                yield request(classes, case, request_id=name)

        streamed = [(result, error) async for result, error in client.stream_infer(requests())]
        facts = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": [
                await client.is_model_ready("multi"),
                await client.is_model_ready("self", "2"),
                await client.is_model_ready("nobody"),
            ],
            "metadata": names(await client.get_model_metadata("multi-head", as_json=True)),
            "statistics": (await client.get_inference_statistics("multi", "1")).model_stats[0].inference_count,
            "config": (await client.get_model_config("multi")).config.name,
            "index": [
                (each.name, each.version, each.state) for each in (await client.get_model_repository_index()).models
            ],
            "concurrent": all(same(outputs(each), answers["lengths"]) for each in repeated),
            "stream": [result.get_response().id for result, error in streamed if error is None],
            "stream_same": all(same(outputs(result), answers[result.get_response().id]) for result, _ in streamed),
        }
        try:
            await client.infer(**request(classes, Case("multi", {"query": drawn(1, 2, 3, seed=9)})))
        except InferenceServerException as error:
            facts["error"] = [error.status(), error.message()]
    report(answers, facts)


asyncio.run(main())
