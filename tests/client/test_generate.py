"""Generation over scripted answers: the text so far, and where it stops."""

import pytest
from attention_client import AttendResult, AttentionClient
from attention_client.result import Prediction
from attention_proto.attention.v1 import attention_pb2 as pb

DECODER = pb.Model(
    name="decoder",
    version=1,
    manifest=pb.Manifest(predictors=[pb.Predictor(name="next", rows=pb.Predictor.ROWS_LAST, vocabulary=True)]),
)


class Scripted(AttentionClient):
    """Predicts given tokens in turn."""

    def __init__(self, tokens):
        super().__init__("127.0.0.1:1")
        self.tokens = iter(tokens)

    def model(self, *_, **__):
        return DECODER

    def attend(self, model, **_):
        return AttendResult(model, 1, {}, predictions=(Prediction("next", next(self.tokens), 0.5, 0, 7),))


PARAGRAPHS = (" One", ".", "\n", "\n", " Two", ".")
WORDS = ("one", "two", "three")


@pytest.mark.parametrize(
    ("tokens", "stop", "texts", "ends"),
    [
        (PARAGRAPHS, "\n\n", ["One", "One.", "One.", "One."], "stop"),
        (PARAGRAPHS, "\n", ["One", "One.", "One."], "stop"),
        (PARAGRAPHS, ". ", ["One", "One.", "One.", "One.", "One.\n\n Two", "One.\n\n Two."], "length"),
        (PARAGRAPHS, ["Two", "ne."], ["One", "O"], "stop"),
        (WORDS, " ", ["one", "one"], "stop"),
        (WORDS, "\n", ["one", "one two", "one two three"], "length"),
    ],
    ids=repr,
)
def test_stop_strings(tokens, stop, texts, ends):
    """A text ends before a stop string, of white space too; the space around a text is no part of it."""
    with Scripted(tokens) as client:
        steps = list(client.generate("decoder", "prompt", tokens=len(tokens), stop=stop))
    assert [step.text for step in steps] == texts
    assert steps[-1].ends == ends
