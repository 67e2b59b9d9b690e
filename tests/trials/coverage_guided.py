"""The core in this process, from bytes to answer, guided by coverage.

`python -m tests.trials.coverage_guided TARGET SCRATCH [libFuzzer's options]`

Atheris instruments the server's own code and mutates what reached new branches; the edits and damages that the other
doors use are among its mutations. Any exception but an error of the table is a finding.
"""

import contextlib
import random
import sys
from collections.abc import Callable
from pathlib import Path

TARGETS = ("attend-json", "infer-json", "attend-proto", "infer-proto")
SEQUENCES = 64


def main() -> None:  # noqa: C901 # what it imports late is its own
    import atheris  # noqa: PLC0415 # it instruments what is imported after it

    with atheris.instrument_imports(include=["attention_server", "attention_proto"]):
        from attention_proto.attention.v1 import attention_pb2 as pb  # noqa: PLC0415
        from attention_proto.inference import grpc_predict_v2_pb2 as oip_pb  # noqa: PLC0415
        from attention_server.auth.callers import ALL_RIGHTS  # noqa: PLC0415
        from attention_server.codecs import json, proto  # noqa: PLC0415
        from attention_server.codecs.oip import json as oip_json  # noqa: PLC0415
        from attention_server.codecs.oip import mapping, rules  # noqa: PLC0415
        from attention_server.codecs.oip import proto as oip_proto  # noqa: PLC0415
        from attention_server.codecs.oip.messages import InferRequest, InferResponse  # noqa: PLC0415
        from attention_server.domain.call import CallContext  # noqa: PLC0415
        from attention_server.errors import AttentionServiceError  # noqa: PLC0415
        from attention_server.service.build import make_core  # noqa: PLC0415
        from attention_server.settings import Settings  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from serving import made_repository  # noqa: PLC0415

    from tests.trials import hostile_json, hostile_proto  # noqa: PLC0415

    target, scratch = sys.argv[1], Path(sys.argv[2])
    limits = {"max_answer_mib": 1, "max_scores_mib": 1, "max_sequences": SEQUENCES}
    core = make_core(Settings(models=made_repository(), slots=1, **limits))
    core.repository.load()
    service = core.service

    def call() -> CallContext:
        return CallContext("fuzz", "fuzz", None, ALL_RIGHTS)

    def attend_json(body: bytes) -> None:
        request, encoding = json.decode_request(body[1:], model_of(body), 0, service.limits)
        json.encode_response(service.submit(request, call()).result(), encoding)

    def answer(infer: InferRequest) -> InferResponse:
        request = mapping.to_domain(infer, service.limits)
        rules.timeout(infer.parameters)
        with rules.protocol_field_names():
            response = service.submit(request, call()).result()
        return mapping.from_domain(response, infer, service.limits)

    def infer_json(body: bytes) -> None:
        length = str(len(body) - 9) if body[:1] > b"\x80" and len(body) > 9 else None
        infer = oip_json.decode_request(body[1:], length, model_of(body), 0)
        oip_json.encode_response(answer(infer), infer)

    def attend_proto(body: bytes) -> None:
        request = proto.decode_request(pb.AttendRequest.FromString(body), service.limits)
        proto.encode_response(service.submit(request, call()).result())

    def infer_proto(body: bytes) -> None:
        infer = oip_proto.decode_request(oip_pb.ModelInferRequest.FromString(body))
        oip_proto.encode_response(answer(infer))

    def model_of(body: bytes) -> str:
        return hostile_json.MODELS[(body[0] if body else 0) % 7]

    runs: dict[str, Callable[[bytes], None]] = dict(
        zip(TARGETS, (attend_json, infer_json, attend_proto, infer_proto), strict=True)
    )
    run = runs[target]

    def once(body: bytes) -> None:
        with contextlib.suppress(AttentionServiceError, DecodeError):
            run(body)

    documents = hostile_json.ATTEND if target == "attend-json" else hostile_json.INFER
    method = "Attend" if target == "attend-proto" else "ModelInfer"
    messages = next(each for name, each in hostile_proto.VALID.items() if name.endswith(f"/{method}"))
    corpus = scratch / "corpus"
    corpus.mkdir()
    if target.endswith("json"):
        seeds = [
            bytes([i % 7]) + hostile_json.written(hostile_json.as_pairs(each)).encode()
            for i, each in enumerate(documents)
        ]
    else:
        seeds = [each.SerializeToString() for each in messages]
    for i, each in enumerate(seeds):
        (corpus / str(i)).write_bytes(each)

    def mutate(body: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.randrange(2):
            return atheris.Mutate(body, most)
        if target.endswith("json"):
            if rng.randrange(3):
                document = hostile_json.as_pairs(rng.choice(documents))
                for _ in range(rng.randrange(1, 5)):
                    hostile_json.edit(document, rng.randrange(999), rng.randrange(999), rng.randrange(999))
                return (rng.randbytes(1) + hostile_json.written(document).encode("utf-8", "surrogatepass"))[:most]
            return hostile_json.damaged(body, rng)[:most]
        return hostile_proto.damaged(body, rng)[:most]

    options = [
        sys.argv[0],
        *sys.argv[3:],
        f"-artifact_prefix={scratch}/",
        "-max_len=4096",
        "-rss_limit_mb=4096",
        str(corpus),
    ]
    atheris.Setup(options, once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
