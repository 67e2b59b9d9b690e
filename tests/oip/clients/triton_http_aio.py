"""tritonclient.http.aio: requests at once, in both forms, compressed and not."""

import asyncio

import tritonclient.http as classes
import tritonclient.http.aio as module
from scenario import CASES, Case, addresses, drawn, report
from triton_scenario import names, outputs, request, same
from tritonclient.utils import InferenceServerException


async def main() -> None:
    rest, _ = addresses()
    async with module.InferenceServerClient(rest) as client:
        got = await asyncio.gather(*(client.infer(**request(classes, case)) for case in CASES.values()))
        answers = {}
        for name, each in zip(CASES, got, strict=True):
            answers[name] = outputs(each)
        repeated = await asyncio.gather(*(client.infer(**request(classes, CASES["lengths"])) for _ in range(32)))
        in_json = await client.infer(**request(classes, CASES["memory"], binary=False))
        facts = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": [
                await client.is_model_ready("multi"),
                await client.is_model_ready("self", "2"),
                await client.is_model_ready("nobody"),
            ],
            "metadata": names(await client.get_model_metadata("multi-head")),
            "statistics": (await client.get_inference_statistics("multi", "1"))["model_stats"][0]["inference_count"],
            "config": (await client.get_model_config("multi"))["name"],
            "index": [
                (each["name"], each["version"], each["state"]) for each in await client.get_model_repository_index()
            ],
            "concurrent": all(same(outputs(each), answers["lengths"]) for each in repeated),
            "json": same(outputs(in_json), answers["memory"]),
        }
        for algorithm in ("gzip", "deflate"):
            compressed = await client.infer(
                **request(classes, CASES["lengths"]),
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            facts[algorithm] = same(outputs(compressed), answers["lengths"])
        try:
            await client.infer(**request(classes, Case("multi", {"query": drawn(1, 2, 3, seed=9)})))
        except InferenceServerException as error:
            facts["error"] = [error.status(), error.message()]
    report(answers, facts)


asyncio.run(main())
