"""MaxSim: documents ranked by late interaction, as ColBERT does, with their token vectors kept on the server.

The score of a document is the sum, over the query's tokens, of the largest dot product with any token of the document
(Khattab and Zaharia, ColBERT, 2020, equation 3). The model `dot-product`, whose scores are not scaled, gives it as the
top 1 of `scores`: documents are memories, made once, and a search sends the query's vectors once for each document and
gets one number a token back.

    python docs/examples/late_interaction.py ENCODER "a question" "first text" "second text" ...

ENCODER is an imported model with `hidden`, such as MiniLM; the server has the embedded `dot-product` too.
"""

import sys
from collections.abc import Sequence as SequenceOf

import numpy as np
from attention_client import AttentionClient, Memory, OutputSpec, Sequence
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
MODEL = "dot-product"


def token_vectors(client: AttentionClient, encoder: str, text: str) -> Vectors:
    """Return the last hidden state of each token of a text, [T, D], of length 1."""
    hidden: Vectors = client.attend(encoder, text=text, outputs=["hidden"]).outputs["hidden"]
    return hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)


def keep(client: AttentionClient, documents: SequenceOf[Vectors]) -> list[Memory]:
    """Keep the token vectors of documents, each [S, D], in half precision; return their handles."""
    return [client.create_memory(MODEL, key=each, data_type="FP16") for each in documents]


def max_sim(client: AttentionClient, query: Vectors, documents: SequenceOf[Memory]) -> Vectors:
    """Return the score of each document for a query, [documents].

    Args:
        client: of a server with the model `dot-product`.
        query: the vectors of the query's tokens, [T, D].
        documents: handles of `keep`.
    """
    largest = OutputSpec("scores", top_k=1)
    sequences = [Sequence(query=query, memory=each) for each in documents]
    found = client.attend_many(MODEL, sequences, outputs=[largest])
    return np.array([result.outputs["scores"].values.sum() for result in found], np.float32)


def main() -> None:
    """Rank texts for a question, both given as arguments."""
    encoder, question, *texts = sys.argv[1:]
    with AttentionClient("127.0.0.1:50051") as client:
        documents = keep(client, [token_vectors(client, encoder, text) for text in texts])
        scores = max_sim(client, token_vectors(client, encoder, question), documents)
        for score, text in sorted(zip(scores, texts, strict=True), reverse=True):
            print(f"{score:8.3f}  {text}")


if __name__ == "__main__":
    main()
