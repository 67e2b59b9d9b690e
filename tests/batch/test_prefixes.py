"""Contexts before rows: kept once for each text, made again where one is gone."""

from dataclasses import replace

import numpy as np
import pytest
from attention_batch.engines.client import ClientEngine
from attention_batch.engines.local import LocalEngine, _call
from attention_batch.readers.rows import Row
from attention_batch.retry import RetryPolicy
from attention_batch.scorer import Scorer, make_batches
from attention_batch.spec import ScoringSpec, digest, resolve
from attention_client import Sequence
from attention_server.domain import messages as domain

from tests.batch.scoring import letters_of, rows_of, score, write

SOURCES = ["Katzen und Hunde", "Hunde"]
ROWS = [("cats and dogs", SOURCES[i % 2]) for i in range(40)]


@pytest.fixture(scope="module")
def local(repository, tmp_path_factory):
    """An engine of this process, of the one model that reads a source."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text-cross").symlink_to(repository / "text-cross")
    return LocalEngine(folder, concurrency=1)


@pytest.fixture(params=["client", "local"])
def engine(request, client, local):
    return ClientEngine(client) if request.param == "client" else local


def spec_of(engine, **options):
    model = engine.model("text-cross", 0)
    outputs = resolve([{"name": "output"}], model.manifest, reads_text=True)
    return ScoringSpec(model.name, model.version, digest(model), outputs, **options)


def rows(pairs=ROWS):
    made = [Row("in", i, i, Sequence(text=text), 1) for i, (text, _) in enumerate(pairs)]
    return [replace(row, prefix=source) for row, (_, source) in zip(made, pairs, strict=True)]


def scored(engine, spec, pairs=ROWS):
    scorer = Scorer(engine, spec, RetryPolicy(0, print))
    return [result for _, each in scorer.score(make_batches(0, rows(pairs))) for result in each]


def test_prefixes_are_made_once(engine, client, monkeypatch):
    """Rows behind kept contexts have the answers of calls with the source itself; each text is sent once."""
    sent = []
    kind, name = (type(client), "create_memory") if isinstance(engine, ClientEngine) else (type(engine), "_keep")
    make = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *given, **named: sent.append((given, named)) or make(*given, **named))
    found = scored(engine, spec_of(engine))
    expected = {source: client.attend("text-cross", text=ROWS[0][0], memory_text=source).output for source in SOURCES}
    for result, (_, source) in zip(found, ROWS, strict=True):
        assert np.allclose(result.values[0], expected[source], atol=1e-6)
    assert len(sent) == len(SOURCES)


def test_contexts_that_are_gone(engine, client):
    """A context that the engine has dropped is made again, and the answer is the same."""
    spec = spec_of(engine)
    before = scored(engine, spec)
    if isinstance(engine, ClientEngine):
        for memory in client.memories("text-cross"):
            client.delete_memory(memory)
    else:
        for memory in engine._service.memories("text-cross", _call()):
            engine._service.delete_memory("text-cross", memory.id, _call())
    for result, again in zip(before, scored(engine, spec), strict=True):
        assert np.array_equal(result.values[0], again.values[0])


def test_contexts_that_cannot_be_kept(engine):
    """Rows behind a text that the model cannot read fail by the column's name; all further rows have answers."""
    pairs = [("cats and dogs", " " if i % 3 == 0 else SOURCES[0]) for i in range(40)]
    for i, result in enumerate(scored(engine, spec_of(engine), pairs)):
        assert (getattr(result, "field", None) == "prefix") == (i % 3 == 0)


def test_more_contexts_than_there_is_room_for(local, monkeypatch):
    """Where the budget keeps one context at a time, rows behind several are computed in smaller batches."""
    spec = spec_of(local)
    expected = scored(local, spec)
    monkeypatch.setattr(local, "_prefixes", type(local._prefixes)())
    keep = type(local)._keep

    def keep_one(spec, text):
        for memory in local._service.memories("text-cross", _call()):
            local._service.delete_memory("text-cross", memory.id, _call())
        return keep(local, spec, text)

    monkeypatch.setattr(local, "_keep", keep_one)
    for result, known in zip(scored(local, spec), expected, strict=True):
        assert np.allclose(result.values[0], known.values[0], atol=1e-6)


def test_a_column_of_prefixes(job, client, tmp_path):
    """`prefix` is a column only where it is named; a null is a row without a context, which this model needs."""
    columns = {"text": [text for text, _ in ROWS[:3]], "prefix": [*SOURCES, None]}
    source = write(tmp_path / "in.jsonl", columns)
    output = tmp_path / "out.jsonl"
    assert score(job(source, output, "text-cross", columns={"prefix": "prefix"}))[0] == 3
    for row, memory_text in zip(rows_of(output), SOURCES, strict=True):
        assert np.allclose(
            row["output"], client.attend("text-cross", text=ROWS[0][0], memory_text=memory_text).output, atol=1e-6
        )
    assert [letter["row"] for letter in letters_of(output)] == [2]
    assert score(job(source, tmp_path / "b.jsonl", "text-cross"))[0] == 3
    assert len(letters_of(tmp_path / "b.jsonl")) == 3


def test_a_decoder_goes_on_behind_prefixes(tiny_versions, tmp_path):
    """A decoder's last row behind a kept prefix has the logits that transformers gives for the whole text."""
    import torch  # noqa: PLC0415 # slow to import
    from export.tiny_checkpoints import word_tokenizer  # noqa: PLC0415

    tiny_versions.serve_in(tmp_path, "gpt2", "gpt2", "ForCausalLM")
    engine = LocalEngine(tmp_path, concurrency=1)
    model = engine.model("gpt2", 0)
    outputs = resolve([{"name": "logits", "rows": [-1]}, {"name": "tokens"}], model.manifest, reads_text=True)
    spec = ScoringSpec("gpt2", 1, digest(model), outputs)
    scorer = Scorer(engine, spec, RetryPolicy(0, print))
    pairs = [("w9 w12", "w5 w6 w7"), ("w9 w12", "w8"), ("w11", "w5 w6 w7")]
    answered = [result for _, each in scorer.score(make_batches(0, rows(pairs))) for result in each]
    for result, (_, prefix) in zip(answered, pairs, strict=True):
        request = domain.MemoryRequest(model="gpt2", version=1, memory_text=prefix)
        kept = engine._service.submit_memory(request, _call()).result()
        shown = [*engine._service.describe(kept).tokens, *result.values[1]]
        ids = word_tokenizer().convert_tokens_to_ids(shown)
        with torch.no_grad():
            expected = tiny_versions.model("gpt2", "ForCausalLM")(torch.tensor([ids])).logits[0, -1].numpy()
        assert np.allclose(result.values[0], expected, atol=1e-4)
