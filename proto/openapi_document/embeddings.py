"""Schemas of /v1/embeddings, in the form of OpenAI's API; its names are that API's."""

from openapi_document.schema import INTEGER, NUMBER, STRING, Schema, answer, array, described, enumeration, ref, request

SCHEMAS: dict[str, Schema] = {
    "EmbeddingsRequest": request(
        {
            "input": array(STRING, "Texts. The server takes a string, a list of token ids and lists of these too."),
            "model": described(STRING, "The name of a model, or NAME@VERSION."),
            "encoding_format": described(
                ref("EmbeddingEncoding"),
                "Default: float. With `base64` an embedding is a string of little-endian float32.",
            ),
            "dimensions": described(INTEGER, "The width of the model's embedding, when given; embeddings are not cut."),
            "user": described(STRING, "Ignored."),
        },
        ["input", "model"],
    ),
    "EmbeddingEncoding": enumeration(["float"]),
    "EmbeddingsResponse": answer(
        {"object": STRING, "data": array(ref("EmbeddedText")), "model": STRING, "usage": ref("EmbeddingsUsage")}
    ),
    # Not `Embedding`: a generated class that has its own name as a property shadows itself.
    "EmbeddedText": answer({"object": STRING, "index": INTEGER, "embedding": array(NUMBER)}),
    "EmbeddingsUsage": answer({"prompt_tokens": INTEGER, "total_tokens": INTEGER}),
    "OpenAIError": answer(
        {
            "message": STRING,
            "type": STRING,
            "param": STRING | {"nullable": True, "description": "The path of the field at fault."},
            "code": STRING,
        }
    ),
    "OpenAIErrorResponse": answer({"error": ref("OpenAIError")}),
}
