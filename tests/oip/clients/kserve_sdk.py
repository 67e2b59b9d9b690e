"""The KServe SDK's inference clients: `python kserve_sdk.py REST GRPC FOLDER rest|grpc`."""

import asyncio
import sys
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from scenario import CASES, Case, addresses, data_type, drawn, report


def request(case: Case, *, binary: bool = True, options: dict[str, dict[str, Any]] | None = None) -> InferRequest:
    inputs = []
    for name, array in case.inputs.items():
        tensor = InferInput(name, list(array.shape), data_type(array))
        tensor.set_data_from_numpy(array, binary_data=binary or array.dtype == np.float16)
        inputs.append(tensor)
    wanted = [RequestedOutput(name, {"binary_data": binary} | (options or {}).get(name, {})) for name in case.outputs]
    return InferRequest(
        case.model,
        inputs,
        request_id="7",
        parameters=dict(case.parameters) | ({} if wanted else {"binary_data_output": binary}),
        request_outputs=wanted or None,
    )


def outputs(response: Any) -> dict[str, np.ndarray]:
    return {each.name: each.as_numpy() for each in response.outputs}


def texts(array: np.ndarray) -> list[Any]:
    return [each.decode() if isinstance(each, bytes) else each for each in array.ravel().tolist()]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(texts(one[name]) == texts(other[name]) for name in one)


class Rest:
    def __init__(self) -> None:
        self.url = f"http://{addresses()[0]}"
        self.client = InferenceRESTClient(RESTConfig(protocol="v2"))
        self.at = (self.url,)

    async def infer(self, asked: InferRequest) -> Any:
        return await self.client.infer(self.url, asked, model_name=asked.model_name)


class Grpc:
    def __init__(self) -> None:
        self.client = InferenceGRPCClient(addresses()[1])
        self.at = ()

    async def infer(self, asked: InferRequest) -> Any:
        return await self.client.infer(asked)


async def main() -> None:
    side = {"rest": Rest, "grpc": Grpc}[sys.argv[4]]()
    answers = {name: outputs(await side.infer(request(case))) for name, case in CASES.items()}
    again = {
        name: outputs(await side.infer(request(case, binary=False))) for name, case in CASES.items() if name != "half"
    }
    repeated = await asyncio.gather(*(side.infer(request(CASES["lengths"])) for _ in range(32)))
    plain = CASES["unnamed"]._replace(outputs=("weights",))
    facts = {
        "live": await side.client.is_server_live(*side.at),
        "ready": await side.client.is_server_ready(*side.at),
        "model_ready": [
            await side.client.is_model_ready(*side.at, "multi"),
            await side.client.is_model_ready(*side.at, "nobody"),
        ],
        "json": all(same(each, answers[name]) for name, each in again.items()),
        "concurrent": all(same(outputs(each), answers["lengths"]) for each in repeated),
        "id": repeated[0].id,
        "output_parameters": sorted(outputs(await side.infer(request(plain, options={"weights": {"top_k": 1}})))),
    }
    wrong = Case("multi", {"query": drawn(1, 2, 3, seed=9)})
    try:
        await side.infer(request(wrong))
    except httpx.HTTPStatusError as error:
        facts["error"] = [str(error.response.status_code), str(error)]
    except grpc.RpcError as error:
        facts["error"] = [str(error.code()), error.details()]
    await side.client.close()
    report(answers, facts)


asyncio.run(main())
