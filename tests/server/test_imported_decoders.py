"""Imported decoders, served without torch, give the weights, hidden states, logits and greedy tokens of the source."""

import asyncio
import copy
import functools
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from attention_client import (
    AsyncAttentionClient,
    AttendResult,
    AttentionClient,
    GeneratedToken,
    InvalidRequest,
    OutputSpec,
    Sample,
)
from attention_client.cli.commands import app
from attention_export.manifest import read_manifest
from attention_server.contexts.memory import Memory
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK
from attention_server.domain.messages import OutputSpec as DomainSpec
from attention_server.domain.messages import Sequence as DomainSequence
from attention_server.errors import InvalidRequest as ServerInvalidRequest
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.inference.validation import keeps_prefixes
from attention_server.repository.loader import load
from export.tiny_checkpoints import BEGIN, DECODERS, END, SPECIAL, WORDS, tiny_model
from export.tiny_versions import TinyVersions
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving import HANG, free_port, start_server
from transformers import PreTrainedModel
from typer.testing import CliRunner

from tests.server.eager import TOLERANCE, distance

TASK = "ForCausalLM"
TOP = 5
STEPS = 12
EVERYTHING = [
    OutputSpec("weights", layers=["*"]),
    OutputSpec("hidden"),
    OutputSpec("logits"),
    OutputSpec("predictions", top=TOP),
]
SEQUENCES = ([BEGIN], [BEGIN, 31, 8, 99, 4, 5, 7, 7, 64, END], [5 + 7 * i % 95 for i in range(31)])
STEPPED = ("gpt2", "gemma2", "llama")  # a mixture of experts gives other bits beside others: its steps run alone
LIMITS = Limits(sequences=8, scores_bytes=2**24, answer_bytes=2**24, memory_ttl=60, outputs=64, work_bytes=2**24)
GREEDY = ("gpt2", "llama", "gemma2", "gpt_oss", "mistral")
# Others differ from one of these in a detail; the trials have all.
SHORT = (*GREEDY, "gpt_neox", "opt", "phi3 longrope", "granite", "cohere")
KINDS = [kind if kind in SHORT else pytest.param(kind, marks=pytest.mark.long) for kind in DECODERS]


def name_of(kind: str) -> str:
    return kind.replace(" ", "-")


@functools.cache
def source(kind: str) -> PreTrainedModel:
    """Return a decoder with its head; the same parameters in each process."""
    return tiny_model(kind, task=TASK)


@dataclass
class Decoders:
    """A client of the server of all decoders, and the words of those that were refused."""

    client: AttentionClient
    rest: str
    grpc: str
    models: Path
    refused: dict[str, str]

    def answer(self, kind: str, tokens: list[int], outputs: list[OutputSpec] = EVERYTHING) -> AttendResult:
        assert kind not in self.refused, self.refused[kind]
        return self.client.attend(name_of(kind), token_ids=tokens, outputs=outputs)


@pytest.fixture(scope="module")
def decoders(
    request: pytest.FixtureRequest, tiny_versions: TinyVersions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Decoders]:
    """One server of the decoders that are asked in this run."""
    models = tmp_path_factory.mktemp("decoders")
    refused = {}
    asked = {item.callspec.params.get("kind") for item in request.session.items if hasattr(item, "callspec")}
    for kind in [kind for kind in DECODERS if kind in asked or kind in SHORT]:
        try:
            tiny_versions.serve_in(models, name_of(kind), kind, TASK)
        except AssertionError as error:
            refused[kind] = str(error)
    with start_server(models) as server, AttentionClient(server.grpc) as client:
        yield Decoders(client, server.rest, server.grpc, models, refused)


def eager(model: PreTrainedModel, tokens: list[int]) -> tuple[list[NDArray], NDArray, NDArray]:
    """Return the weights of each attention [H, T, T], the last hidden state [T, D], and the logits [T, V]."""
    assert model.config._attn_implementation == "eager"
    given_tokens = torch.tensor([tokens])
    with torch.no_grad():
        hidden = model.base_model(given_tokens).last_hidden_state
        result = model(given_tokens, output_attentions=True, use_cache=False)
    return [weights[0].numpy() for weights in result.attentions], hidden[0].numpy(), result.logits[0].numpy()


def greedy(kind: str, prompt: list[int]) -> list[int]:
    """Return a prompt with the tokens that `transformers.generate` puts behind it."""
    model = source(kind)
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    tokens: list[int] = model.generate(torch.tensor([prompt]), **options)[0].tolist()
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_gives_what_eager_gives(kind: str, decoders: Decoders) -> None:
    """Over gRPC: weights of each site, the last hidden state, logits of each row, and the most probable next tokens."""
    for tokens in SEQUENCES:
        answer = decoders.answer(kind, tokens)
        weights, hidden, logits = eager(source(kind), tokens)
        names = [name for name in answer.outputs if name.startswith("weights@")]
        assert len(names) == len(weights)
        for name, expected in zip(names, weights, strict=True):
            assert distance(answer[name], expected) < TOLERANCE, name
        assert distance(answer["hidden"], hidden) < TOLERANCE
        assert distance(answer["logits"], logits) < TOLERANCE
        (prediction,) = answer.predictions
        probabilities = torch.from_numpy(logits[-1]).double().softmax(-1).numpy()
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        assert prediction.row == len(tokens) - 1
        assert [each.id for each in prediction.top] == best.tolist()
        np.testing.assert_allclose([each.probability for each in prediction.top], probabilities[best], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_goes_on_behind_a_kept_prefix(kind: str, decoders: Decoders) -> None:
    """Every stage of the rows behind a prefix is that of the whole text: weights over both, and predictions too."""
    tokens, outputs = SEQUENCES[2], [*EVERYTHING, OutputSpec("scores"), OutputSpec("k"), OutputSpec("entropy")]
    whole = decoders.answer(kind, tokens, outputs)
    for length in (1, 17, len(tokens) - 1):
        memory = decoders.client.create_memory(name_of(kind), memory_token_ids=tokens[:length])
        assert (memory.length, memory.source_length, memory.prefix_length) == (length, 0, length)
        rest = decoders.client.attend(name_of(kind), token_ids=tokens[length:], memory=memory, outputs=outputs)
        for name, expected in whole.outputs.items():
            rows = slice(None) if name == "k" else slice(length, None)
            of_rows = expected[rows] if name in ("hidden", "logits") else expected[:, rows]
            assert distance(rest[name], of_rows) < 1e-5, (name, length)
        (prediction,), (expected_prediction,) = rest.predictions, whole.predictions
        assert prediction.row == len(tokens) - length - 1
        assert [each.id for each in prediction.top] == [each.id for each in expected_prediction.top]


@pytest.mark.parametrize("kind", GREEDY)
def test_steps_over_an_extended_memory_are_those_of_generate(kind: str, decoders: Decoders) -> None:
    """Each token is put behind the memory of the step before; branches and deletions leave it as it is."""
    prompt, client, name = [BEGIN, 31, 8, 99, 5], decoders.client, name_of(kind)
    answer = client.attend(name, token_ids=prompt, extend=True)
    first, tokens = answer.memory, list(prompt)
    for step in range(STEPS):
        memory = answer.memory
        tokens.append(answer.predictions[0].id)
        if step % 3 == 0:  # a branch of the same memory, to whose rows the next ones are not added
            client.attend(name, token_ids=[7, 8], memory=memory, outputs=["predictions"], extend=True)
        if step == STEPS // 2:  # recreated by way of the prompt
            client.delete_memory(memory)
        answer = client.attend(
            name, token_ids=tokens[-1:], memory=memory, outputs=["weights", "predictions"], extend=True
        )
        assert answer.memory.prefix_length == len(tokens) == answer.weights.shape[-1] == len(answer.key_tokens)
    assert tokens == greedy(kind, prompt)
    assert first.prefix_length == len(prompt)
    long = [5 + 7 * i % 95 for i in range(40)]  # more layers run, for their keys, than are asked for
    of_first = client.attend(
        name, token_ids=long, memory=first, outputs=[OutputSpec("weights", layers=["0"])], extend=True
    )
    assert (of_first.weights.shape, of_first.memory.prefix_length) == ((4, 40, 45), 45)
    again = client.attend(name, token_ids=tokens[len(prompt) :], memory=first, outputs=["weights", "predictions"])
    np.testing.assert_allclose(again.weights[:, -1:], answer.weights, atol=1e-5)
    assert len(answer.memory.tokens) == len(tokens)


@pytest.mark.parametrize("kind", STEPPED)
def test_steps_of_many_in_one_pass_have_the_bits_of_each_alone(kind: str, decoders: Decoders) -> None:
    """Single tokens behind prefixes of 1 to 60 positions are of one kind; together they are what each is alone."""
    model = load(decoders.models / name_of(kind) / "1", OnnxRuntime("cpu", 1), 2**31)
    model.costs.batches.extend([(32, 0.5)] * 2)  # as where a batch pays
    wanted = [DomainSpec(name, layers=("*",)) for name in ("weights", "entropy", "lse", "scores", "heads")]
    cached = model.plan((*wanted, DomainSpec("hidden"), DomainSpec("logits"), DomainSpec("predictions", top=3)))
    store = MemoryStore(2**24)
    prepared, kinds = [], set()
    for length in (1, 5, 6, 7, 32, 60):
        tokens = model.reader.take(np.arange(length) % WORDS, "")
        past = model.keep_prefix(tokens, "FP32", Run())
        memory = Memory("", model.name, 1, {}, None, 60, model.digest, content=bytes([length]), past=past)
        sequence = DomainSequence(token_ids=np.array([7]), memory=store.put(memory).id)
        ((each, profile),) = model.checker.prepare(sequence, cached, NO_MASK, HeldMemories(store), LIMITS)
        prepared.append(each)
        kinds.add(profile.company.kind)
    assert len(kinds) == 1 and None not in kinds
    together = model.answer(prepared, cached.plan, Run())()
    for each, result in zip(prepared, together, strict=True):
        (alone,) = model.answer([each], cached.plan, Run())()
        assert alone.predictions == result.predictions
        for name, expected in alone.outputs.items():
            np.testing.assert_array_equal(result.outputs[name], expected, err_msg=f"{name} of {kind}")


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
@pytest.mark.parametrize("extend", [False, True])
def test_steps_and_texts_of_many_in_one_pass_have_the_bits_of_each_alone(
    kind: str, extend: bool, decoders: Decoders
) -> None:
    """Single tokens, several, and texts without a prefix share a pass, kept ones too: each is what it is alone."""
    model = load(decoders.models / name_of(kind) / "1", OnnxRuntime("cpu", 1), 2**31)
    wanted = [DomainSpec(name, layers=("*",)) for name in ("weights", "heads")]
    cached = model.plan((*wanted, DomainSpec("hidden"), DomainSpec("predictions", top=3)))
    store = MemoryStore(2**24)
    prefix = model.reader.take(np.arange(30) % WORDS, "")
    past = model.keep_prefix(prefix, "FP32", Run())
    memory = store.put(Memory("", model.name, 1, {}, None, 60, model.digest, content=b"prefix", past=past)).id
    prepared, kinds = [], set()
    for length, behind in ((1, memory), (9, ""), (1, memory), (3, memory), (1, ""), (3, ""), (3, ""), (26, "")):
        tokens = (7 + np.arange(length) * 5) % WORDS
        sequence = DomainSequence(token_ids=tokens, memory=behind, extend=extend)
        ((each, profile),) = model.checker.prepare(sequence, cached, NO_MASK, HeldMemories(store), LIMITS)
        prepared.append(each)
        kinds.add(profile.company.kind)
    assert len(kinds) == 1 and None not in kinds
    for each, result in zip(prepared, model.answer(prepared, cached.plan, Run())(), strict=True):
        (alone,) = model.answer([each], cached.plan, Run())()
        assert alone.predictions == result.predictions
        for name, expected in alone.outputs.items():
            np.testing.assert_array_equal(result.outputs[name], expected, err_msg=f"{name} of {kind}")


def test_rows_that_may_be_mixed_keep_no_prefix(decoders: Decoders) -> None:
    """A graph of which the import could not tell that its rows are independent is not continued."""
    manifest = read_manifest(decoders.models / "gemma2/1")
    keeps_prefixes(manifest, "model")
    manifest.segments[1].rows_dependent = True
    with pytest.raises(ServerInvalidRequest, match="rows of this transformer depend on further rows of one pass"):
        keeps_prefixes(manifest, "model")


def test_sums_over_rows_behind_a_prefix(decoders: Decoders) -> None:
    """`received` and `statistics` of the rows behind a prefix are those of these rows of the whole; none is changed."""
    tokens = [BEGIN, *SEQUENCES[1][1:], *SEQUENCES[2]]
    names, rows = ("received", "statistics"), range(17, len(tokens))
    whole = decoders.answer("mistral", tokens, [OutputSpec(name, rows=rows) for name in names])
    memory = decoders.client.create_memory("mistral", memory_token_ids=tokens[:17])
    sent = {"token_ids": tokens[17:], "memory": memory, "outputs": names}
    rest = decoders.client.attend("mistral", **sent)
    for name in names:
        assert distance(rest[name], whole[name]) < 1e-5, name
    with pytest.raises(InvalidRequest, match="ablate: changes sites of which the memory keeps keys and values"):
        decoders.client.attend("mistral", ablate=[{"layers": ["0"]}], **sent)
    with pytest.raises(InvalidRequest, match="extend: keeps a sequence as it is without"):
        decoders.client.attend("mistral", token_ids=tokens, score_temperature=2, extend=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_generate_is_transformers_generate(kind: str, decoders: Decoders) -> None:
    """Greedy tokens are those of `transformers.generate`, its end token too; each has the keys of its own row."""
    given, name = [BEGIN, 31, 8, 99, 5], name_of(kind)
    steps = list(
        decoders.client.generate(
            name, token_ids=given, tokens=STEPS, outputs=[{"name": "weights", "top_k": 2}, "entropy"], top=2
        )
    )
    options = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0, "eos_token_id": END}
    expected = source(kind).generate(torch.tensor([given]), **options)[0].tolist()
    assert [*given, *(step.id for step in steps)] == expected
    assert steps[-1].ends == ("end" if expected[-1] == END else "length")
    assert not any(step.ends for step in steps[:-1])
    for count, step in enumerate(steps, len(given)):
        assert (len(step.result.key_tokens), step.result["weights"].indices.shape[1:]) == (count, (1, 2))
        assert step.top[0] == (step.id, step.token, step.probability)
        assert step.result["entropy"].shape[1] == 1


def test_generate_draws_and_stops(decoders: Decoders) -> None:
    """Draws are the same for a seed and differ between steps; a stop string ends the text; asyncio gives the same."""
    client, prompt = decoders.client, "w31 w8 w99"

    def words(**given: Any) -> list[GeneratedToken]:
        return list(client.generate("gpt2", prompt, **given))

    drawn = words(tokens=8, sample={"seed": 3, "temperature": 2.0})
    assert [each.id for each in drawn] == [each.id for each in words(tokens=8, sample=Sample(2.0, seed=3))]
    assert len({each.id for each in drawn}) > 2
    (cut,) = [each for each in words(tokens=8, sample=Sample(2.0, seed=3), stop=[drawn[2].token]) if each.ends]
    assert (cut.ends, cut.text.split()) == ("stop", [each.token for each in drawn[:2]])
    assert words(tokens=None)[-1].ends in ("end", "length")

    async def awaited() -> list[int]:
        async with AsyncAttentionClient(decoders.grpc) as twin:
            return [each.id async for each in twin.generate("gpt2", prompt, tokens=4)]

    assert asyncio.run(awaited()) == [each.id for each in words(tokens=4)]
    for options, field in (
        ({"outputs": ["predictions"]}, "outputs[0]"),
        ({"memory_text": "w3"}, "memory_text"),
        ({"token_ids": []}, "inputs[0].token_ids"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            words(**options)
        assert refused.value.field == field


def test_generate_by_command(decoders: Decoders) -> None:
    """The command prints each token with the keys of its largest weights, or the text alone, or JSON."""
    prompt = "w31 w8 w99"
    steps = list(
        decoders.client.generate(
            "gpt2",
            prompt,
            tokens=3,
            outputs=[{"name": "weights", "pairs": ["0.1", "1.2"], "reduce": "mean", "top_k": 1}],
        )
    )

    def said(*options: str) -> str:
        arguments = ["generate", prompt, "--model", "gpt2", "--tokens", "3", "--target", decoders.grpc, *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    lines = said("--greedy", "--show-attention", "--pairs", "0.1,1.2").splitlines()
    for line, step in zip(lines, steps, strict=True):
        looked_at = step.result["weights"]
        key = step.result.key_tokens[looked_at.indices[0, 0, 0]]
        assert line.split()[:3] == [step.token, key, f"{looked_at.values[0, 0, 0]:.2f}"]
    assert said("--greedy").split() == steps[-1].text.split()
    documents = [json.loads(line) for line in said("--seed", "5", "--temperature", "2", "--json").splitlines()]
    drawn = decoders.client.generate("gpt2", prompt, tokens=3, sample=Sample(2.0, seed=5))
    assert [each["id"] for each in documents] == [each.id for each in drawn]
    assert CliRunner().invoke(app, ["generate", prompt, "--model", "gpt2", "--greedy", "--seed", "1"]).exit_code == 2


def test_a_killed_server_loses_no_token(decoders: Decoders, tmp_path: Path) -> None:
    """A server is killed and started anew in mid-generation: the client makes the memory again, and goes on."""
    shutil.copytree(decoders.models / "gpt2", tmp_path / "gpt2")
    prompt, ports = [BEGIN, 31, 8, 99, 5], ("--grpc-port", free_port())
    options = {"token_ids": prompt, "tokens": 9, "sample": Sample(2.0, seed=1), "timeout": HANG}
    expected = [each.id for each in decoders.client.generate("gpt2", **options)]
    with ExitStack() as ended, AttentionClient(f"127.0.0.1:{ports[1]}") as client:
        ended.enter_context(suppress(AssertionError))  # of a server that did not stop cleanly
        server = ended.enter_context(start_server(tmp_path, *ports))
        steps = client.generate("gpt2", **options)
        found = [next(steps).id for _ in range(5)]
        server.process.kill()
        server.process.wait()
        with start_server(tmp_path, *ports):
            found += [each.id for each in steps]
    assert found == expected


def test_a_prefix_over_rest(decoders: Decoders) -> None:
    """A prefix of text is kept with its special tokens; a text behind it has none, and masks count its keys too."""
    url = f"http://{decoders.rest}/v1/models/gemma2"
    memory = requests.post(f"{url}/memories", json={"memory_text": "one two three"}, timeout=HANG).json()
    count = memory["prefix_length"]
    assert (memory["length"], memory["source_length"], len(memory["tokens"])) == (count, 0, count)
    mask = {"allowed": [[True] * count + [True, False], [True] * (count + 2)]}
    body = {"text": "four five", "memory": memory["id"], "outputs": ["weights"], "mask": mask}
    (result,) = requests.post(f"{url}:attend", json=body, timeout=HANG).json()["results"]
    assert result["tokens"] == ["four", "five"]
    assert result["outputs"]["weights"]["shape"] == [4, 2, count + 2]
    body = {"text": "four", "memory": memory["id"], "mask": {"window": {"left": 0}}, "outputs": ["weights"]}
    (alone,) = requests.post(f"{url}:attend", json=body, timeout=HANG).json()["results"]
    assert alone["outputs"]["weights"]["values"] == [[[0.0] * count + [1.0]]] * 4
    longer = requests.post(f"{url}/memories", json={"memory_text": "one two three", "ttl": 3600}, timeout=HANG).json()
    body = {"text": "four", "memory": memory["id"], "extend": True, "outputs": ["weights"]}
    (behind,) = requests.post(f"{url}:attend", json=body, timeout=HANG).json()["results"]
    assert longer["id"] == memory["id"]
    lives = datetime.fromisoformat(behind["memory"]["expire_time"]) - datetime.now(UTC)
    assert lives > timedelta(seconds=1200)  # as long as the memory that it goes on behind; 600 by itself


REFUSED = [
    ({"token_ids": [BEGIN] * 76}, "token_ids", "76 tokens behind the 5 of the memory; this model reads at most 80"),
    ({"query": np.ones((76, 32), np.float32)}, "query", "76 positions behind 5"),
    ({"token_ids": [BEGIN], "memory_text": "a"}, "memory", "give only one of memory_text and memory"),
    ({"token_ids": [BEGIN], "allowed": np.ones((1, 1), bool), "outputs": ["weights"]}, None, None),
    ({"token_ids": [BEGIN], "allowed": np.ones((1, 5), bool)}, "mask.allowed", "[4, 1, 6]"),
]


@pytest.mark.parametrize(("sequence", "field", "words"), REFUSED)
def test_lengths_behind_a_prefix(
    decoders: Decoders, sequence: dict[str, object], field: str | None, words: str | None
) -> None:
    """The prefix counts among the positions that a model reads and among the keys of a mask, and is the only memory."""
    memory = decoders.client.create_memory("gemma2", memory_token_ids=[BEGIN, 31, 8, 99, 4])
    if words is None:
        assert decoders.client.attend("gemma2", memory=memory, **sequence)["weights"].shape == (4, 1, 6)
        return
    with pytest.raises(InvalidRequest, match=re.escape(words)) as error:
        decoders.client.attend("gemma2", memory=memory, **sequence)
    assert error.value.field.endswith(field)


def test_a_sink_takes_a_part_of_each_row(decoders: Decoders) -> None:
    """Rows of gpt-oss' weights have a sum below 1; heads and entropy are of these weights; lse is without."""
    wanted = [OutputSpec(name, layers=["1"]) for name in ("scores", "weights", "heads", "v", "entropy", "lse")]
    answer = decoders.answer("gpt_oss", SEQUENCES[1], wanted)
    weights, scores = answer["weights"], answer["scores"]
    hidden_keys = ~np.tri(len(SEQUENCES[1]), dtype=bool)
    powers = np.exp(np.where(hidden_keys, -np.inf, scores))
    sinks = np.exp(source("gpt_oss").model.layers[1].self_attn.sinks.detach().numpy())[:, None, None]
    np.testing.assert_allclose(weights, powers / (powers.sum(-1, keepdims=True) + sinks), atol=1e-5)
    sums = weights.sum(-1)
    assert sums.max() <= 1 + 1e-6 and sums.min() < 0.9
    groups = len(weights) // len(answer["v"])
    np.testing.assert_allclose(answer["heads"], weights @ np.repeat(answer["v"], groups, 0), rtol=1e-3, atol=1e-4)
    terms = weights * np.log(np.where(weights > 0, weights, 1))
    np.testing.assert_allclose(answer["entropy"], -terms.sum(-1), atol=1e-4)
    np.testing.assert_allclose(answer["lse"], np.log(powers.sum(-1)), atol=1e-4)


CHANGED = ("llama", "gemma2", "gpt_oss")  # plain and grouped; with a softcap and windows; with sinks


@pytest.mark.parametrize("kind", CHANGED)
def test_heads_switched_off(kind: str, decoders: Decoders) -> None:
    """Heads of several layers switched off give what the source gives without their rows of M_O, in float64."""
    changed = copy.deepcopy(source(kind))
    changed = changed if kind == "gpt_oss" else changed.double()  # its experts are multiplied in float32 alone
    ablate = [{"layers": ["0"], "heads": [1]}, {"layers": ["1"], "heads": [0, 2]}]
    for each in ablate:
        projection = changed.base_model.layers[int(each["layers"][0])].self_attn.o_proj.weight.data
        for head in each["heads"]:
            projection.unflatten(1, (changed.config.num_attention_heads, -1))[:, head] = 0
    weights, hidden, logits = eager(changed, SEQUENCES[2])
    answer = decoders.client.attend(name_of(kind), token_ids=SEQUENCES[2], outputs=EVERYTHING, ablate=ablate)
    for i, expected in enumerate(weights):
        assert distance(answer[f"weights@{i}"], expected) < TOLERANCE
    assert distance(answer["hidden"], hidden) < TOLERANCE
    assert distance(answer["logits"], logits) < TOLERANCE


@pytest.mark.parametrize("kind", CHANGED)
def test_a_temperature_of_the_softmax(kind: str, decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each softmax of attention divides what it takes, sinks too, as in the source with such a softmax."""
    plain = torch.nn.functional.softmax

    def divided(x: torch.Tensor, dim: int = -1, **options: object) -> torch.Tensor:
        return plain(x / 1.7 if x.ndim == 4 else x, dim=dim, **options)

    monkeypatch.setattr(torch.nn.functional, "softmax", divided)
    weights, hidden, logits = eager(source(kind), SEQUENCES[2])
    answer = decoders.client.attend(name_of(kind), token_ids=SEQUENCES[2], outputs=EVERYTHING, score_temperature=1.7)
    for i, expected in enumerate(weights):
        assert distance(answer[f"weights@{i}"], expected) < TOLERANCE
    assert distance(answer["hidden"], hidden) < TOLERANCE
    assert distance(answer["logits"], logits) < TOLERANCE


words = st.lists(st.integers(len(SPECIAL), WORDS - 1), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(past=words, first=words, second=words)
def test_an_answer_does_not_see_the_future(
    decoders: Decoders, past: list[int], first: list[int], second: list[int]
) -> None:
    """Weights, hidden states and logits of a beginning are the same, whatever is behind it."""
    rows = len(past)
    one, other = (decoders.answer("gemma2", past + future) for future in (first, second))
    for name in ("weights@0", "weights@1"):
        np.testing.assert_allclose(one[name][:, :rows, :rows], other[name][:, :rows, :rows], atol=1e-6)
        assert not one[name][:, :rows, rows:].any()
    for name in ("hidden", "logits"):
        assert distance(one[name][:rows], other[name][:rows]) < 1e-5


@pytest.mark.parametrize("kind", GREEDY)
def test_greedy_steps_are_those_of_generate(kind: str, decoders: Decoders) -> None:
    """The most probable token, put behind the text and asked again, gives the tokens of `transformers.generate`."""
    prompt = [BEGIN, 31, 8, 99, 5]
    expected = greedy(kind, prompt)
    tokens = list(prompt)
    for _ in range(STEPS):
        (prediction,) = decoders.answer(kind, tokens, [OutputSpec("predictions", top=1)]).predictions
        tokens.append(prediction.top[0].id)
    assert tokens == expected


def test_a_text_beyond_the_original_length_is_refused(decoders: Decoders) -> None:
    """Phi-3 with `longrope` takes as many tokens as it was first trained for, since a longer text turns all rows."""
    decoders.answer("phi3 longrope", [BEGIN] * 40)
    with pytest.raises(InvalidRequest, match="40"):
        decoders.answer("phi3 longrope", [BEGIN] * 41)
