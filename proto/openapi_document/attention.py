"""Schemas of /v1: attention, memories and errors."""

from typing import get_args

from attention_proto.codec import DTYPES
from attention_proto.masks import UNBOUNDED, Causal
from attention_proto.stages import DATA_TYPES, FOLDS, OPTIONS, OUTPUTS, POOLS, PREDICTIONS, REDUCES, STAGES, Option
from attention_proto.text import TRUNCATES

from openapi_document.schema import (
    BASE64,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    Schema,
    answer,
    array,
    described,
    enumeration,
    integer,
    nested,
    ref,
    request,
)

AS_THEY_ARE = "They are taken as they are, special tokens included."
TRUNCATE_WORDS = "Where tokens of a text are dropped that are more than the model reads; special tokens stay."
BATCH = "A query [B, T, D] stands for B sequences."
OTHER_RANKS = "The server takes nested lists of any rank too."
SPAN_WORDS = "A range is `[begin, end]`, in positions of keys from 0, or an object; `end` is behind it."
OPTION_SCHEMAS = {"reduce": "Reduce", "pool": "Pool", "fold": "Fold", "data_type": "OutputDataType"}  # of choices


def _tensor(words: str, items: Schema = NUMBER, tensor: str = "InputTensor") -> Schema:
    """Return the schema of numbers that a caller sends: a list of rows, or an object with the elements.

    The server takes nested lists of any rank. Of a union of several, generators write code that no type checker takes.
    """
    return {"anyOf": [array(array(items)), ref(tensor)], "description": words}


def _input_tensor(values: Schema, words: str) -> Schema:
    properties = {
        "data_type": described(ref("DataType"), "Default: FP32 for numbers, BOOL for `allowed`."),
        "shape": array(integer(0), "The length of each dimension. Needed beside `data`."),
        "data": BASE64 | {"description": "The elements, little-endian, row-major, in base64."},
        "values": array(values, "The elements, row-major; the server takes nested lists too."),
    }
    return request(properties, words=words)


def _option(option: Option) -> Schema:
    if option.kind == "choice":
        return described(
            ref(OPTION_SCHEMAS[option.name]),
            option.words if "default" in option.words else f"{option.words} Default: {option.choices[0]}.",
        )
    if option.kind == "sample":
        return described(ref("Sample"), option.words)
    if option.kind == "spans":
        ranges = {"anyOf": [array(integer(0)), ref("KeySpan")]}
        return {"type": "object", "additionalProperties": ranges, "description": f"{option.words} {SPAN_WORDS}"}
    items = {"string": STRING, "strings": STRING}.get(option.kind) or integer(option.minimum)
    return described(array(items) if option.kind in ("integers", "strings") else items, option.words)


SEQUENCE: dict[str, Schema] = {
    "query": _tensor(f"[T, query width]. {BATCH} {OTHER_RANKS}"),
    "key": _tensor("[S, key width]; the query when absent, save for cross-attention, which needs one."),
    "value": _tensor("[S, value width]; the key when absent."),
    "text": described(STRING, "The query as text, for a text model."),
    "memory_text": described(STRING, "The memory as text, for a text model that attends to a second sequence."),
    "token_ids": array(integer(0), f"The query as ids of tokens, in place of `text`. {AS_THEY_ARE}"),
    "memory_token_ids": array(integer(0), f"The memory as ids of tokens, in place of `memory_text`. {AS_THEY_ARE}"),
    "text_pair": described(STRING, "The second text of a pair, of which `text` is the first."),
    "truncate": described(ref("Truncate"), f"{TRUNCATE_WORDS} Default: none, which refuses such a text."),
    "memory": described(STRING, "The id of a kept memory."),
    "extend": described(
        BOOLEAN,
        "Whether the sequence's own keys and values are kept behind those of `memory`, which stays as it is: `memory` "
        "of the result is a new one of both. For decoders, and for targets over a kept source. Default: false.",
    ),
    "mask": ref("Mask"),
    "lengths": array(
        integer(1),
        "The lengths of several sequences that `query` holds one behind the other, [sum of lengths, query width]. Each "
        "has its own result. `key` and `value` are packed likewise; every further field holds for each sequence.",
    ),
}
STAGE_WORDS = "; ".join(f"`{stage.name}` {stage.shape}: {stage.words}" for stage in STAGES.values())
OUTPUTS_WORDS = (
    f"The outputs to return; `output`, and `{PREDICTIONS}` where the model has a head, when absent. The server takes "
    "the name alone, a string, in place of an object without options."
)

SAMPLE: dict[str, Schema] = {
    "temperature": described(NUMBER, "Divides the logits; above 0. Default: 1."),
    "top_k": integer(0, "The number of labels that are kept, ties with the last one too. Default: 0, all."),
    "top_p": described(NUMBER, "The least sum of the probabilities that are kept; in (0, 1]. Default: 1."),
    "seed": integer(0, "Equal sequences have equal draws for one seed, row by row. By default each draw is a new one."),
}
TEMPERATURE_WORDS = (
    "Divides whatever the softmax of each site takes: weights are softmax(masked scores / score_temperature). Above 0; "
    "default: 1. `scores` are told undivided."
)
LABEL_WORDS = "The position of the label among the predictor's labels; of a vocabulary, the id of the token."

SCHEMAS: dict[str, Schema] = {
    "AttendRequest": request(
        {
            "model": described(STRING, "As in the URL, when given."),
            "version": described(INTEGER, "As in the URL, when given."),
            "inputs": array(ref("Sequence"), "Sequences of any lengths."),
            "outputs": array(ref("OutputSpec"), OUTPUTS_WORDS),
            "encoding": described(ref("Encoding"), "How the answer's tensors are written. Default: json."),
            "token_offsets": described(
                BOOLEAN, "Whether to return the position of each token in its text. Default: false."
            ),
            "ablate": array(ref("Ablation"), "Heads that are switched off."),
            "score_temperature": described(NUMBER, TEMPERATURE_WORDS),
            **SEQUENCE,
        },
        words="Either `inputs`, or one sequence's fields here.",
    ),
    "Sequence": request(
        SEQUENCE,
        words="Exactly one of `query`, `text` and `token_ids`; at most one of `key`, `memory_text`, `memory_token_ids` "
        f"and `memory`, but that `key` may stand beside `memory` in a `dot_product` model. {BATCH}",
    ),
    "Mask": request(
        {
            "causal": described(
                ref("Causal"),
                "Hides later positions; query and key are aligned at their first or last position. Default: none.",
            ),
            "window": ref("Window"),
            "allowed": _tensor(
                f"BOOL, broadcastable to [H, T, S]; true = may attend. {OTHER_RANKS}", BOOLEAN, "BooleanTensor"
            ),
            "bias": _tensor(
                f"Broadcastable to [H, T, S], added to the scores; -inf, in base64, hides a key. {OTHER_RANKS}"
            ),
            "layers": array(
                STRING, "The layers whose sites it is for, by the names that an output takes; all when absent."
            ),
        },
        words="The keys that each query may attend to. A key must pass every part.",
    ),
    "Truncate": enumeration(TRUNCATES),
    "Causal": enumeration(get_args(Causal)),
    "Window": request(
        {
            "left": integer(UNBOUNDED, "Default: -1."),
            "right": integer(UNBOUNDED, "Default: -1."),
        },
        words="Inclusive distances from the diagonal; -1 is unbounded.",
    ),
    "OutputSpec": request(
        {"name": ref("OutputName"), **{option.name: _option(option) for option in OPTIONS.values()}}, ["name"]
    ),
    "Sample": request(
        SAMPLE,
        words="A draw of a prediction's label: of logits / temperature the largest `top_k` are kept, of these the most "
        "probable up to a sum of `top_p`, and one is drawn by the softmax of what is kept.",
    ),
    "KeySpan": request(
        {
            "begin": integer(0, "The first key, counted from 0; behind a kept prefix, whose keys come first, too."),
            "end": integer(0, "The first key behind the range; above `begin`."),
            "characters": described(
                BOOLEAN,
                "Whether both count characters of the sequence's own text that the keys are of. The range then has the "
                "tokens that have one of these characters, and those between. Default: false.",
            ),
        },
        ["end"],
        "A range of keys.",
    ),
    "OutputName": enumeration(OUTPUTS, f"{STAGE_WORDS}; `{PREDICTIONS}`: the answers of the model's head."),
    "Reduce": enumeration(REDUCES),
    "Pool": enumeration(POOLS),
    "Fold": enumeration(FOLDS),
    "OutputDataType": enumeration(DATA_TYPES),
    "StorageType": enumeration(DATA_TYPES),
    "DataType": enumeration(DTYPES, "The number format of a tensor, in the Open Inference Protocol's words."),
    "Encoding": enumeration(["json", "base64"]),
    "InputTensor": _input_tensor(NUMBER, "Numbers: `data` with `shape`, or `values`."),
    "BooleanTensor": _input_tensor(BOOLEAN, "Booleans: `data` with `shape`, or `values`."),
    "AttendResponse": answer(
        {
            "model": STRING,
            "version": INTEGER,
            "results": array(ref("Result")),
            "ablate": array(ref("Ablation"), "As requested; absent where nothing is switched off."),
            "score_temperature": described(NUMBER, "As requested; absent without one."),
        },
        ["model", "version", "results"],
    ),
    "Ablation": answer(
        {
            "layers": array(STRING, "As in the option `layers` of an output; may be absent in a model of one site."),
            "heads": array(integer(0), "All when absent."),
        },
        [],
        "Heads that are switched off: their results are zero behind the weights, which are still told.",
    ),
    "Result": answer(
        {
            "tokens": array(STRING, "The query's tokens, of a text or of ids."),
            "memory_tokens": array(STRING, "The memory's tokens, of a text or of ids."),
            "token_offsets": array(
                ref("Span"), "The position of each token in the text, in a pair in its own one; empty for ids."
            ),
            "memory_token_offsets": array(ref("Span"), "The same of the memory's tokens."),
            "truncated_tokens": integer(0, "The tokens of the text that were dropped; absent where none was."),
            "memory_truncated_tokens": integer(0, "The same of the memory's text."),
            "outputs": {
                "type": "object",
                "additionalProperties": {"anyOf": [ref("Tensor"), ref("TopK"), ref("Alignment")]},
                "description": "By name, in the order asked; `TopK` for those with `top_k`, or `Alignment`.",
            },
            "predictions": array(ref("Prediction")),
            "memory": described(ref("Memory"), "What is kept of a sequence with `extend`; its tokens are left out."),
        },
        ["outputs"],
        "The answer for one sequence.",
    ),
    "Tensor": answer(
        {
            "data_type": ref("DataType"),
            "shape": array(INTEGER),
            "values": {"anyOf": nested(NUMBER), "description": "Nested lists, with the encoding json."},
            "data": BASE64 | {"description": "Little-endian, row-major, with the encoding base64."},
        },
        ["data_type", "shape"],
    ),
    "TopK": answer(
        {"indices": ref("Tensor"), "values": ref("Tensor")},
        words="The largest numbers of each row, descending, and the positions of their keys.",
    ),
    "Alignment": answer(
        {
            "links": array(ref("Link"), "One for each row that may attend to a key, in the order of the rows."),
            "pharaoh": described(STRING, "The links in Pharaoh's form, source before target: `0-1 1-0`."),
        },
        words="The key that each query attends to most.",
    ),
    "Link": answer({"source": INTEGER, "target": INTEGER}, words="A key position and a query position, from 0."),
    "Prediction": answer(
        {
            "name": STRING,
            "label": STRING,
            "probability": NUMBER,
            "id": described(INTEGER, LABEL_WORDS),
            "row": described(INTEGER, "The query position that it was read from; absent when read from all."),
            "top": array(ref("Candidate"), "The most probable labels, descending; absent without the option `top`."),
        },
        ["name", "label", "probability", "id"],
    ),
    "Candidate": answer(
        {"id": described(INTEGER, LABEL_WORDS), "label": STRING, "probability": NUMBER},
        words="A label that a head considered.",
    ),
    "TokenizeRequest": request(
        {
            "model": described(STRING, "As in the URL, when given."),
            "version": described(INTEGER, "As in the URL, when given."),
            "inputs": array(ref("TokenizeInput"), "The texts."),
            "text": described(STRING, "A single text, in place of `inputs`."),
            "text_pair": described(STRING, "The second text of a pair, of which `text` is the first."),
            "truncate": described(ref("Truncate"), f"{TRUNCATE_WORDS} Default: none, which refuses such a text."),
            "memory": described(
                BOOLEAN,
                "Whether the texts are memory texts, which a model may read by another tokenizer. Default: false.",
            ),
        },
        words="Either `inputs`, or one text's fields here.",
    ),
    "TokenizeInput": request(
        {"text": STRING, "text_pair": described(STRING, "The second text of a pair, for a model that takes pairs.")},
        ["text"],
    ),
    "TokenizeResponse": answer({"model": STRING, "version": INTEGER, "results": array(ref("Tokenization"))}),
    "Tokenization": answer(
        {
            "token_ids": array(INTEGER, "The id of each token, as `token_ids` of a sequence takes them."),
            "tokens": array(STRING, "Each token as it stands in the text, or by its name."),
            "token_offsets": array(ref("Span"), "The position of each token in its text."),
            "token_types": array(INTEGER, "The type of each token, as the tokenizer gives it."),
            "special": array(BOOLEAN, "Whether each token is one that the tokenizer put beside the text."),
            "truncated_tokens": described(INTEGER, "The number of tokens that were dropped."),
        },
        words="The tokens of one text or pair, as the model reads them.",
    ),
    "Span": answer({"start": INTEGER, "end": INTEGER}, words="A part of a text, in characters."),
    "ModelList": answer({"models": array(ref("Model"))}),
    "MemoryRequest": request(
        {
            "model": described(STRING, "As in the URL, when given."),
            "version": integer(0, "0, or absent: the default."),
            "key": _tensor("[S, key width]"),
            "value": _tensor("[S, value width]; the key when absent."),
            "memory_text": described(STRING, "The memory as text, for a text model."),
            "memory_token_ids": array(integer(0), f"The memory as ids of tokens. {AS_THEY_ARE}"),
            "truncate": described(ref("Truncate"), f"{TRUNCATE_WORDS} Default: none."),
            "ttl": described(NUMBER, "Seconds to keep it after its last use."),
            "pinned": described(
                BOOLEAN,
                "Whether it is never evicted, within the caller's share; its time to live holds. Default: false.",
            ),
            "data_type": described(ref("StorageType"), "The format in which it is kept. Default: FP32."),
            "id": described(
                STRING, "Its id, 32 hexadecimal digits, to make a memory again that is gone. Default: a random one."
            ),
        },
        words="Exactly one of `key`, `memory_text` and `memory_token_ids`.",
    ),
    "Memory": answer(
        {
            "id": STRING,
            "model": STRING,
            "version": INTEGER,
            "length": described(INTEGER, "Its positions: `source_length` + `prefix_length`."),
            "source_length": described(INTEGER, "The keys of another sequence, to which a query attends."),
            "prefix_length": described(INTEGER, "The positions that a query goes on behind, in a decoder."),
            "tokens": array(STRING, "Its tokens, when it was made from text or ids."),
            "expire_time": STRING | {"format": "date-time"},
            "size_bytes": INTEGER,
            "shared_bytes": described(INTEGER, "How many of these other memories of the caller keep too."),
            "pinned": described(BOOLEAN, "Whether it is never evicted."),
            "data_type": ref("StorageType"),
            "max_storage_error": described(
                NUMBER, "The largest absolute difference between a kept number and the projected one; absent for FP32."
            ),
            "truncated_tokens": integer(0, "The tokens of the text that were dropped; absent where none was."),
        },
        [
            "id",
            "model",
            "version",
            "length",
            "source_length",
            "prefix_length",
            "expire_time",
            "size_bytes",
            "shared_bytes",
            "pinned",
            "data_type",
        ],
    ),
    "MemoryList": answer({"memories": array(ref("Memory"))}),
    "Empty": answer({}, words="An empty object."),
    "Health": answer({"status": STRING}),
    "ErrorDetail": answer(
        {
            "code": described(INTEGER, "The HTTP status."),
            "status": described(STRING, "The name of the gRPC status."),
            "message": STRING,
            "field": described(STRING, "The path of the field at fault."),
            "request_id": STRING,
        },
        ["code", "status", "message", "request_id"],
    ),
    # Not `Error`: a generated class that has its own name as a property shadows itself.
    "ErrorResponse": answer({"error": ref("ErrorDetail")}),
}
