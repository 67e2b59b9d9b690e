"""The labels of a model's predictions, by id."""

from collections.abc import Sequence
from dataclasses import dataclass

from attention_proto.attention.v1.attention_pb2 import Manifest

from attention_server.inference.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Labels:
    """The labels of one predictor.

    Attributes:
        names: by id. A head may have more outputs than a vocabulary has tokens; the further ones have no name.
    """

    names: Sequence[str]

    def __getitem__(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else ""

    def __len__(self) -> int:
        return len(self.names)


def read_labels(manifest: Manifest, reader: TextTokenizer | None) -> dict[str, Labels]:
    """Return the labels of each predictor: the manifest's, or the tokens of the text's tokenizer as text."""
    vocabulary = reader.labels if reader and any(each.vocabulary for each in manifest.predictors) else ()
    return {each.name: Labels(vocabulary if each.vocabulary else each.labels) for each in manifest.predictors}
