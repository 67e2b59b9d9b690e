"""Tokenizers written in Python, and vocabularies without one, as tokenizers of the tokenizers library."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import SpmConverter, import_protobuf

from attention_export.importing import ImportFailure

Encode = Callable[[str], list[int]]

# Schwaller et al. 2019, Molecular Transformer: atoms, bonds, branches, rings and the arrow of a reaction.
SMILES = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
SMILES_TOKENS = {"C", "c", "N", "O", "(", ")", "=", "1"}  # of every vocabulary of SMILES
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
REPLACED = "\ufffd"  # a character of runs that a language lacks
NEVER = -1e4  # the score of a piece that is no piece of the language: lower than that of its characters together
NORMAL = 1  # the type of a SentencePiece piece that a text is split into
UNUSED = 5
SAMPLES = (
    "Hello world, this is a text.",
    "  two  spaces\tand\na line ",
    "Ünïcödé ÀÉ ﬁ ① naïve",
    "12.5% of 1,000 don't",
    "東京 Привет мир 😀 שלום",
    "MKTAYIAKQR BJOUXZ mkt",
)
DRAWN = 40  # texts of random tokens in the comparison with a tokenizer's source
WORDS = 12


def convert(loaded: PreTrainedTokenizerBase, folder: Path, *, target: bool) -> Tokenizer | None:
    """Return a tokenizer that `transformers` has in Python alone; None for a class without a conversion.

    Args:
        loaded: the tokenizer.
        folder: of the checkpoint.
        target: whether texts are those of the target, where source and target have two tokenizers.

    Raises:
        ImportFailure: the conversion splits a text in another way, or cannot hold the tokenizer.
    """
    name = type(loaded).__name__
    if name not in CONVERSIONS:
        return None
    tokenizer, texts = CONVERSIONS[name](loaded, folder, target)
    tokenizer.post_processor = _template(loaded)
    known = set(tokenizer.get_vocab())
    tokenizer.add_special_tokens([token for token in loaded.all_special_tokens if token in known])
    compare(tokenizer, lambda text: _ids(loaded, text, target=target), texts, name)
    return tokenizer


def smiles_tokenizer(path: Path) -> Tokenizer | None:
    """Return the tokenizer of a vocabulary of SMILES; None for a vocabulary of anything else.

    Each token of such a vocabulary is one match of `SMILES`. A text's tokens are the matches of `re.findall`,
    between [CLS] and [SEP].

    Args:
        path: a `vocab.txt`, one token a line.
    """
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    vocabulary = {token: row for row, token in enumerate(lines)}
    pattern = re.compile(SMILES)
    if not vocabulary.keys() >= SMILES_TOKENS | set(BERT_SPECIAL) or not all(map(pattern.fullmatch, vocabulary)):
        return None
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 # no password
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES), behavior="removed", invert=True)
    special = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    cls, sep, unknown = (vocabulary[token] for token in ("[CLS]", "[SEP]", "[UNK]"))

    def encode(text: str) -> list[int]:
        return [cls, *(vocabulary.get(token, unknown) for token in pattern.findall(text)), sep]

    compare(tokenizer, encode, (*SAMPLES, *drawn([token for token in lines if token not in BERT_SPECIAL])), path.name)
    return tokenizer


def compare(tokenizer: Tokenizer, encode: Encode, texts: Sequence[str], name: str) -> None:
    """Compare a conversion with its source.

    Args:
        tokenizer: the conversion.
        encode: returns the ids of a text by the source.
        texts: to split.
        name: of the source.

    Raises:
        ImportFailure: the ids of a text differ.
    """
    for text in texts:
        expected, found = encode(text), tokenizer.encode(text).ids
        if found != expected:
            raise ImportFailure(
                f"{name} cannot be written as tokenizer.json: it splits {text!r} into {expected}, and the conversion "
                f"into {found}"
            )


def drawn(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return texts of random tokens, the same for the same tokens."""
    chosen = random.Random(0)  # noqa: S311 # no secret
    return tuple("".join(chosen.choices(tokens, k=1 + i % WORDS)) for i in range(DRAWN))


def _ids(loaded: Any, text: str, *, target: bool) -> list[int]:
    encoded = loaded(text_target=text) if target else loaded(text)
    return list(encoded["input_ids"])


def _template(loaded: Any) -> processors.TemplateProcessing:
    """Return the special tokens around a text and a pair of texts, in the order of a tokenizer in Python."""
    first, second = -1, -2  # stand for the ids of the texts
    shown = {first: "$A", second: "$B"}

    def pieces(ids: list[int], types: list[int]) -> list[str]:
        return [
            f"{shown.get(id_) or loaded.convert_ids_to_tokens(id_)}:{type_}"
            for id_, type_ in zip(ids, types, strict=True)
        ]

    single = loaded.build_inputs_with_special_tokens([first])
    pair = loaded.build_inputs_with_special_tokens([first], [second])
    special = sorted({*single, *pair} - shown.keys())
    return processors.TemplateProcessing(
        single=pieces(single, [0] * len(single)),
        pair=pieces(pair, loaded.create_token_type_ids_from_sequences([first], [second])),
        special_tokens=[(loaded.convert_ids_to_tokens(id_), id_) for id_ in special],
    )


def _esm(loaded: Any, _folder: Path, _target: bool) -> tuple[Tokenizer, tuple[str, ...]]:
    """Residues: every token of the vocabulary is cut out of the text; each word between two is one unknown token."""
    vocabulary: Mapping[str, int] = loaded.get_vocab()
    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token=loaded.unk_token))
    longest_first = sorted(vocabulary, key=len, reverse=True)
    tokens = Regex("|".join(map(re.escape, longest_first)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokens, behavior="isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    residues = [token for token in longest_first if token not in loaded.all_special_tokens]
    return tokenizer, (*SAMPLES, *drawn(residues), f"MK{loaded.mask_token}AY")


def _marian(loaded: Any, folder: Path, target: bool) -> tuple[Tokenizer, tuple[str, ...]]:
    """A SentencePiece model with the ids of `vocab.json`, which holds the pieces of both languages.

    Entries that are no pieces of this language are kept with a score that no text reaches. Characters that the
    language's model lacks are read one unknown token a run, before entries of the other language match.
    """
    vocabulary: dict[str, int] = loaded.target_encoder if target and loaded.separate_vocabs else loaded.encoder
    file = loaded.vocab_files_names["target_spm" if target else "source_spm"]
    messages: Any = import_protobuf("")  # type: ignore[no-untyped-call]
    proto = messages.ModelProto.FromString((folder / file).read_bytes())
    pieces = {piece.piece: piece for piece in proto.pieces}
    normal = [name for name, piece in pieces.items() if piece.type == NORMAL]
    missing = [name for name in normal if name not in vocabulary]
    if missing:
        raise ImportFailure(f"{file} has {len(missing)} pieces that vocab.json lacks, such as {missing[0]!r}")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ImportFailure("vocab.json does not number its tokens from 0 on, each once")
    renumbered = type(proto)()
    renumbered.CopyFrom(proto)
    del renumbered.pieces[:]
    for name in sorted(vocabulary, key=vocabulary.__getitem__):
        own = name in pieces and pieces[name].type == NORMAL
        renumbered.pieces.add(piece=name, score=pieces[name].score if own else NEVER, type=NORMAL if own else UNUSED)
    renumbered.trainer_spec.unk_id = vocabulary[loaded.unk_token]
    scores = [(piece.piece, piece.score) for piece in renumbered.pieces]
    is_unigram = proto.trainer_spec.model_type == 1
    build: Any = SpmConverter.build_tokenizer_from_spm_proto
    tokenizer: Tokenizer = build(
        renumbered, scores if is_unigram else {name: row for row, (name, _) in enumerate(scores)}
    )
    letters = "".join(sorted({letter for name in normal for letter in name}))
    unknown = normalizers.Replace(Regex(f"[^ {re.escape(letters)}]{{2,}}"), REPLACED)
    tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, unknown])
    codes = [AddedToken(code, normalized=False) for code in loaded.supported_language_codes]
    tokenizer.add_tokens(codes)
    texts = [text.replace("▁", " ") for text in drawn(normal)]
    return tokenizer, (*SAMPLES, *texts, *(f"{code.content} {texts[0]}" for code in codes[:3]))


CONVERSIONS: dict[str, Callable[[Any, Path, bool], tuple[Tokenizer, tuple[str, ...]]]] = {
    "EsmTokenizer": _esm,
    "MarianTokenizer": _marian,
}
