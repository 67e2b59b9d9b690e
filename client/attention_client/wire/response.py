"""Read results from the response on the wire."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.memory import Memory
from attention_client.result import (
    Ablation,
    Alignment,
    AttendResult,
    Candidate,
    Link,
    OutputValue,
    Prediction,
    Span,
    Tokenization,
    TopK,
)


def read(request: pb.AttendRequest, response: pb.AttendResponse) -> list[AttendResult]:
    """Return the results, one for each sequence of the request, in order."""
    sequences: Iterable[pb.Sequence] = request.inputs
    if len(request.inputs) != len(response.results):  # an input with `lengths` holds several sequences
        sequences = [each for each in sequences for _ in range(len(each.lengths) or 1)]
    layers = {spec.alias or spec.name: spec.layers[0] for spec in request.outputs if len(spec.layers) == 1}
    of_pairs = {each.alias or each.name: each.pairs[0].rpartition(".")[0] for each in request.outputs if each.pairs}
    return [_read(response, layers | of_pairs, *each) for each in zip(sequences, response.results, strict=True)]


def read_tokens(response: pb.TokenizeResponse) -> list[Tokenization]:
    """Return the tokens of each text."""
    return [
        Tokenization(
            token_ids=tuple(each.token_ids),
            tokens=tuple(each.tokens),
            token_offsets=tuple([Span(span.start, span.end) for span in each.token_offsets]),
            token_types=tuple(each.token_types),
            special=tuple(each.special),
            truncated_tokens=each.truncated_tokens,
        )
        for each in response.results
    ]


def _read(
    response: pb.AttendResponse, layers: Mapping[str, str], sequence: pb.Sequence, result: pb.Result
) -> AttendResult:
    to_itself = not (
        sequence.HasField("key") or sequence.HasField("memory_text") or sequence.memory_token_ids or sequence.memory
    )
    answer = AttendResult(
        model=response.model,
        version=response.version,
        outputs={output.name: _value(output) for output in result.outputs},
        tokens=tuple(result.tokens),
        memory_tokens=tuple(result.memory_tokens),
        key_tokens=tuple(result.tokens if to_itself else result.memory_tokens),
        predictions=tuple(map(_prediction, result.predictions)),
        token_offsets=tuple(Span(span.start, span.end) for span in result.token_offsets),
        memory_token_offsets=tuple(Span(span.start, span.end) for span in result.memory_token_offsets),
        truncated_tokens=result.truncated_tokens,
        memory_truncated_tokens=result.memory_truncated_tokens,
        layers=layers,
        memory=Memory(result.memory) if result.HasField("memory") else None,
        ablate=tuple([Ablation(tuple(each.layers), tuple(each.heads)) for each in response.ablate]),
        score_temperature=response.score_temperature if response.HasField("score_temperature") else None,
    )
    keys = {answer.axes(name)[1] for name in answer.outputs}
    return answer if len(keys) != 1 or answer.key_tokens in keys else replace(answer, key_tokens=keys.pop())


def _value(output: pb.Output) -> OutputValue:
    if output.HasField("alignment"):
        links = tuple([Link(each.source, each.target) for each in output.alignment.links])
        return Alignment(links, output.alignment.pharaoh)
    if output.HasField("top_k"):
        return TopK(codec.decode(output.top_k.indices), codec.decode(output.top_k.values))
    return codec.decode(output.tensor)


def _prediction(prediction: pb.Prediction) -> Prediction:
    row = prediction.row if prediction.HasField("row") else None
    top = tuple([Candidate(each.id, each.label, each.probability) for each in prediction.top])
    return Prediction(prediction.name, prediction.label, prediction.probability, row, prediction.id, top)
