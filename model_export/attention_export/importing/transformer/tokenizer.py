"""The tokenizer of a checkpoint, in the form that a server reads: `tokenizer.json` of the tokenizers library."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from attention_export.importing import ImportFailure
from attention_export.importing.transformer.conversion import convert, smiles_tokenizer
from attention_export.importing.transformer.source import quiet

VOCABULARY = "vocab.txt"
FILE = "tokenizer.json"
LONGEST = 10**6  # tokens; `model_max_length` beyond it stands for no limit


@dataclass(frozen=True)
class ImportedTokenizer:
    """text -> tokens as in the checkpoint, special tokens included.

    Attributes:
        tokenizer: without padding and truncation.
        max_tokens: the longest text by the tokenizer's own files; 0 for any.
        gives_types: whether the source's tokenizer gives token types to the model.
        notes: differences from the checkpoint, in sentences.
    """

    tokenizer: Tokenizer
    max_tokens: int = 0
    gives_types: bool = True
    notes: tuple[str, ...] = ()

    def content(self) -> bytes:
        """Return the file `tokenizer.json`."""
        return (self.tokenizer.to_str(pretty=True) + "\n").encode()

    def limit(self, positions: int) -> int:
        """Return the longest text of a model with so many positions; 0 is any number."""
        return min((longest for longest in (positions, self.max_tokens) if longest), default=0)


def read_tokenizer(folder: Path, vocabulary: int, *, target: bool = False) -> ImportedTokenizer:
    """Read or convert the tokenizer of a checkpoint.

    It is the one that `transformers` makes of the folder; where that fails, `tokenizer.json` as it is. A vocabulary of
    SMILES is none that `transformers` knows, and comes first.

    Args:
        folder: of the checkpoint.
        vocabulary: the number of rows of the token embedding.
        target: whether texts are those of the target, for which a translator may have a tokenizer of its own.

    Raises:
        ImportFailure: there is no tokenizer, or none that `tokenizer.json` can hold, or one with tokens that the model
            has no embedding of.
    """
    found = _read(folder, target=target)
    found.tokenizer.no_padding()
    found.tokenizer.no_truncation()
    _check_vocabulary(found.tokenizer, vocabulary)
    return found


def _read(folder: Path, *, target: bool) -> ImportedTokenizer:
    vocabulary = folder / VOCABULARY
    smiles = None if (folder / FILE).exists() else smiles_tokenizer(vocabulary)
    if smiles is not None:
        return ImportedTokenizer(smiles, notes=(f"{VOCABULARY} is one of SMILES: texts are split by atoms and bonds",))
    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 # each class has errors of its own, of one meaning here
        return _as_file(folder, f"`transformers` makes no tokenizer of it: {_one_line(error)}")
    return _converted(folder, loaded, target=target)


def _converted(folder: Path, loaded: PreTrainedTokenizerBase, *, target: bool) -> ImportedTokenizer:
    files = sorted({FILE, *loaded.vocab_files_names.values()})
    if not any((folder / name).exists() for name in files):  # some classes then make a vocabulary of special tokens
        raise ImportFailure(f"{folder} has no tokenizer: there is none of {', '.join(files)}")
    longest = loaded.model_max_length
    longest = int(longest) if longest and longest <= LONGEST else 0
    gives_types = "token_type_ids" in loaded.model_input_names
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        converted = convert(loaded, folder, target=target)
        if converted is not None:
            return ImportedTokenizer(converted, longest, gives_types)
        kind = type(loaded).__name__
        found = _as_file(folder, f"its {kind} is written in Python, and there is no conversion of it to {FILE}")
        return replace(found, max_tokens=longest, gives_types=gives_types)
    return ImportedTokenizer(Tokenizer.from_str(backend.to_str()), longest, gives_types)


def _as_file(folder: Path, reason: str) -> ImportedTokenizer:
    """Return `tokenizer.json` as it is.

    Raises:
        ImportFailure: it is missing or cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        raise ImportFailure(f"{folder} has no {FILE}, and {reason}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise ImportFailure(f"{path} cannot be read: {_one_line(error)}") from error
    return ImportedTokenizer(tokenizer, notes=(f"{FILE} is taken as it is: {reason}",))


def _check_vocabulary(tokenizer: Tokenizer, rows: int) -> None:
    ids: Iterable[int] = tokenizer.get_vocab(with_added_tokens=True).values()
    largest = max(ids, default=-1)
    if not 0 <= largest < rows:
        raise ImportFailure(
            f"the tokenizer's ids go up to {largest}, and the model embeds {rows} tokens: they do not belong together"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
