"""Tokenizers as checkpoints have them, and a small transformer that reads texts by each."""

import hashlib
from pathlib import Path

import numpy as np
from attention_proto.attention.v1.attention_pb2 import File, Predictor
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.server import small_transformer
from tests.server.small_transformer import WIDTH, graph, rows

ROWS = 500  # of the table of tokens: more than any of the tokenizers has
LONGEST = small_transformer.MAX_TOKENS
CORPUS = ["Hello world, the quick brown fox jumps over the lazy dogs. Players playing: café naïve 🙂 שלום مرحبا"] * 20
RNG = np.random.default_rng(3)
TABLE, TYPES = RNG.standard_normal((ROWS, WIDTH)).astype("f"), RNG.standard_normal((2, WIDTH)).astype("f")


def wordpiece() -> Tokenizer:
    """BERT's: lower case without accents, `##` before the parts of a word, token types of a pair."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def byte_level() -> Tokenizer:
    """RoBERTa's: bytes as letters, and a space as part of the word behind it."""
    made = plain_byte_level()
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return made


def plain_byte_level() -> Tokenizer:
    """GPT-2's: no special tokens, and so none between the texts of a pair."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def unigram() -> Tokenizer:
    """T5's: a space is U+2581 before a word, and a token closes the text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return made


KINDS = {"wordpiece": wordpiece, "byte-level": byte_level, "plain": plain_byte_level, "unigram": unigram}


def write(folder: Path, kind: str) -> Tokenizer:
    """Write a small transformer that reads texts by a tokenizer, as version 1; return the tokenizer."""
    made, version = KINDS[kind](), folder / kind / "1"
    nodes = [("Gather", ["table", "tokens"], ["words"])]
    inputs, constants = {"tokens": ["B", "T"]}, {"table": TABLE}
    if kind == "wordpiece":
        inputs["token_type_ids"] = ["B", "T"]
        constants["types"] = TYPES
        nodes += [("Gather", ["types", "token_type_ids"], ["kinds"]), ("Add", ["words", "kinds"], ["query"])]
    else:
        nodes[0] = ("Gather", ["table", "tokens"], ["query"])

    def change(manifest):
        content = made.to_str().encode()
        (version / "tokens.json").write_bytes(content)
        manifest.text.tokenizer.CopyFrom(File(name="tokens.json", sha256=hashlib.sha256(content).hexdigest()))
        manifest.text.vocabulary_size, manifest.text.takes_pairs = ROWS, kind != "plain"
        manifest.logits_dim = ROWS
        del manifest.predictors[:]
        manifest.predictors.append(Predictor(name="token", rows=Predictor.ROWS_ALL, vocabulary=True))

    front = graph(inputs, {"query": rows(WIDTH)}, nodes, constants)
    nodes = [("MatMul", ["hidden", "labels"], ["logits"]), ("Softmax", ["logits"], ["token"])]
    head = graph({"hidden": ["N", WIDTH]}, {"logits": ["N", ROWS], "token": ["N", ROWS]}, nodes, {"labels": TABLE.T})
    small_transformer.write(version, change, front=front, head=head)
    return made


def embeddings(kind: str, ids, types) -> np.ndarray:
    """Return what the front gives for tokens, [T, D]."""
    return TABLE[ids] + (TYPES[types] if kind == "wordpiece" else 0)
