"""Tokenizers without `tokenizer.json`, converted: of vocabularies, of SentencePiece models, and of pairs of these."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import sentencepiece
from attention_export.importing import ImportFailure
from attention_export.importing.transformer import conversion
from attention_export.importing.transformer.conversion import SAMPLES, SMILES, compare, drawn
from attention_export.importing.transformer.source import quiet
from attention_export.importing.transformer.tokenizer import read_tokenizer
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, EsmConfig, MarianConfig, PretrainedConfig, T5Config, XLMRobertaConfig

SENTENCES = Path(__file__).with_name("sentences.txt").read_text().splitlines()
ROWS = 10**6  # of an embedding that holds any tokenizer's ids
RXNMAPPER = Path(sys.prefix) / "share/rxnmapper/rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
RESIDUES = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>".split()  # noqa: SIM905


def trained(texts: list[str], **options: object) -> bytes:
    """Return a small SentencePiece model of texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Marian checkpoint's tokenizer: two SentencePiece models of different alphabets, and one vocabulary."""
    folder = tmp_path_factory.mktemp("marian")
    MarianConfig().save_pretrained(folder)
    vocabulary = {"</s>": 0, "<unk>": 1, ">>fra<<": 2}
    greek = ["ένα σπίτι στο λόφο", "φως και σπίτι", "στο λόφο φως"] * 9
    for side, texts in (("source", SENTENCES), ("target", [*greek, *(text[::-1] for text in SENTENCES)])):
        content = trained(texts)
        (folder / f"{side}.spm").write_bytes(content)
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        for row in range(3, len(model)):
            vocabulary.setdefault(model.id_to_piece(row), len(vocabulary))
    vocabulary["<pad>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return folder


def proteins(folder: Path) -> Path:
    EsmConfig(vocab_size=len(RESIDUES)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(RESIDUES))
    return folder


def written(folder: Path, *, target: bool = False) -> Tokenizer:
    """Return the tokenizer of the file that an import writes."""
    return Tokenizer.from_buffer(read_tokenizer(folder, ROWS, target=target).content())


def test_a_vocabulary_of_smiles_is_split_by_atoms() -> None:
    """rxnmapper's vocabulary gives the tokens of its pattern, with offsets; further characters are left out."""
    tokenizer = written(RXNMAPPER)
    vocabulary = (RXNMAPPER / "vocab.txt").read_text().splitlines()
    for text in ("C(C)O.BrC(C)>>CCOCC", "[Na+]~[H-].ClC1=CC=C(%12)C%12=C1", "C!C [Zz9] ;Cl"):
        encoding = tokenizer.encode(text)
        tokens = re.findall(SMILES, text)
        assert [token if token in vocabulary else "[UNK]" for token in tokens] == encoding.tokens[1:-1]
        assert encoding.ids == [vocabulary.index(token) for token in encoding.tokens]
        assert [text[slice(*span)] for span in encoding.offsets[1:-1]] == tokens
        assert (encoding.tokens[0], encoding.tokens[-1]) == ("[CLS]", "[SEP]")
    assert tokenizer.encode("CC", "O").type_ids == [0, 0, 0, 0, 1, 1]
    assert "SMILES" in read_tokenizer(RXNMAPPER, ROWS).notes[0]


def test_a_vocabulary_of_residues_is_split_by_them(tmp_path: Path) -> None:
    """ESM's `vocab.txt` gives the ids of its Python tokenizer, of proteins with masks, unknown letters and pairs."""
    tokenizer = written(proteins(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("MKTAYIAKQR", "MK<mask>AY JJB mk", " A\nG ", "<eos>"):
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"], text
    assert tokenizer.encode("MK", "AY").ids == theirs("MK", "AY")["input_ids"]
    assert tokenizer.encode("MKT").tokens == ["<cls>", "M", "K", "T", "<eos>"]


@pytest.mark.parametrize("target", [False, True], ids=["source", "target"])
def test_a_translators_pair_of_models_gives_two_tokenizers(target: bool, translator: Path) -> None:
    """`source.spm` and `target.spm` give the ids of Marian's Python tokenizer, of texts of either alphabet."""
    tokenizer = written(translator, target=target)
    with quiet():  # it recommends a normalizer that it then does not call
        theirs = AutoTokenizer.from_pretrained(translator)
    for text in (*SENTENCES[:9], "φως στο λόφο, ψψ", ">>fra<< The house", "  two  spaces\n", "<unk> </s> 😀", "ﬁ É"):
        expected = theirs(text_target=text) if target else theirs(text)
        assert tokenizer.encode(text).ids == expected["input_ids"], text
    other = written(translator, target=not target)
    assert tokenizer.encode(SENTENCES[0]).ids != other.encode(SENTENCES[0]).ids
    assert tokenizer.get_vocab() == json.loads((translator / "vocab.json").read_text())


def test_a_translators_vocabulary_that_lacks_pieces_is_refused(translator: Path, tmp_path: Path) -> None:
    """A piece of a SentencePiece model that `vocab.json` lacks is named."""
    for file in translator.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    vocabulary = json.loads((translator / "vocab.json").read_text())
    del vocabulary["e"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(vocabulary)}))
    with pytest.raises(ImportFailure, match=r"source\.spm has 1 pieces that vocab\.json lacks, such as 'e'"):
        read_tokenizer(tmp_path, ROWS)


@pytest.mark.parametrize(
    ("config", "file"), [(T5Config(), "spiece.model"), (XLMRobertaConfig(), "sentencepiece.bpe.model")]
)
def test_a_sentencepiece_model_gives_its_pieces(config: PretrainedConfig, file: str, tmp_path: Path) -> None:
    """T5's and XLM-R's model files, without `tokenizer.json`, give the pieces that SentencePiece itself gives."""
    config.save_pretrained(tmp_path)
    content = trained(SENTENCES, pad_id=3)
    (tmp_path / file).write_bytes(content)
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokenizer = written(tmp_path)
    letters = [model.id_to_piece(row) for row in range(4, len(model))]
    for text in (*SENTENCES, *SAMPLES, *(text.replace("▁", " ") for text in drawn(letters))):
        known = tokenizer.get_vocab()
        pieces = [piece if piece in known else "<unk>" for piece in model.encode(text, out_type=str)]
        found = [
            token if token in known else "<unk>" for token in tokenizer.encode(text, add_special_tokens=False).tokens
        ]
        assert found == pieces, text


def test_a_conversion_that_splits_in_another_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that loses a rule of its source is refused with the text, and both lists of ids."""

    def by_character(loaded: object, folder: Path, target: bool) -> tuple[Tokenizer, tuple[str, ...]]:
        tokenizer, texts = residues(loaded, folder, target)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
        return tokenizer, texts

    residues = conversion.CONVERSIONS["EsmTokenizer"]
    monkeypatch.setitem(conversion.CONVERSIONS, "EsmTokenizer", by_character)
    with pytest.raises(ImportFailure, match=r"EsmTokenizer cannot be written .* splits 'Hello world.* into \[0, 21, 3"):
        read_tokenizer(proteins(tmp_path), ROWS)


def test_a_comparison_passes_only_equal_ids() -> None:
    """One text that differs is enough."""
    tokenizer = written(RXNMAPPER)
    compare(tokenizer, lambda text: tokenizer.encode(text).ids, SAMPLES, "itself")
    with pytest.raises(ImportFailure, match="itself cannot be written"):
        compare(tokenizer, lambda text: [0 if text == SAMPLES[-1] else 1], SAMPLES[-1:], "itself")
