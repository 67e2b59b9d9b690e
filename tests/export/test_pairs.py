"""Which models take pairs of texts."""

import pytest
from attention_export.importing.transformer.pairs import takes_pairs
from attention_export.importing.transformer.tokenizer import ImportedTokenizer
from tokenizers import Tokenizer, processors

from tests.export.tiny_checkpoints import BEGIN, END, word_tokenizer

SPECIAL = [("<s>", BEGIN), ("</s>", END)]


def tokenizer(single: str, pair: str) -> Tokenizer:
    made = Tokenizer.from_str(word_tokenizer().backend_tokenizer.to_str())
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=SPECIAL)
    return made


@pytest.mark.parametrize(
    ("single", "pair", "types", "given", "taken"),
    [
        ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", 2, True, True),
        ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", 0, False, True),
        ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", 1, True, False),
        ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", 2, False, False),
        ("<s> $A </s>", "<s> $A </s> $B </s>", 1, False, True),
        ("<s> $A </s>", "<s> $A $B </s>", 2, True, False),
        ("$A", "$A $B", 0, True, False),
    ],
)
def test_a_template_of_pairs_and_embeddings_of_its_types(
    single: str, pair: str, types: int, given: bool, taken: bool
) -> None:
    """A template has to put special tokens between the texts, and a model with types has to embed those it gives."""
    assert takes_pairs(ImportedTokenizer(tokenizer(single, pair), gives_types=given), types) == taken


def test_a_tokenizer_without_a_template() -> None:
    """A tokenizer that puts nothing beside texts takes no pairs."""
    made = Tokenizer.from_str(word_tokenizer().backend_tokenizer.to_str())
    made.post_processor = processors.ByteLevel()
    assert not takes_pairs(ImportedTokenizer(made), 0)
