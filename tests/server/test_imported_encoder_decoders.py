"""Imported encoder-decoders, served without torch, give the numbers of `transformers`, and its greedy tokens."""

from collections.abc import Iterator

import pytest
import torch
from attention_client import AttentionClient, OutputSpec, translate
from export.tiny_checkpoints import ENCODER_DECODERS, PAD, tiny_model, word_tokenizer
from export.tiny_versions import TinyVersions
from numpy.typing import NDArray
from serving import start_server
from transformers import PreTrainedModel

from tests.server.eager import TOLERANCE, distance

SHORT = ("t5", "marian", "bart", "mbart", "pegasus", "m2m_100")
HEADED = "t5"  # with its head, as `marian` is
TASKS = {"t5": "ForSeq2SeqLM", "marian": "ForSeq2SeqLM"}  # further kinds are imported without a head
TEXTS = (
    ("w7", ""),
    ("w31 w8 w99 <mask> w5 w7 w7 w64", "w12 w90"),
    ("w5 w60", " ".join(f"w{5 + 7 * i % 95}" for i in range(29))),
)


def model_of(kind: str) -> PreTrainedModel:
    return tiny_model(kind, task=TASKS.get(kind, ""))


@pytest.fixture(scope="module")
def client(tiny_versions: TinyVersions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttentionClient]:
    """A client of one server of all models."""
    models = tmp_path_factory.mktemp("encoder-decoders")
    for kind in SHORT:
        tiny_versions.serve_in(models, kind, kind, TASKS.get(kind, ""))
    with start_server(models) as server, AttentionClient(server.grpc) as client:
        yield client


def eager(model: PreTrainedModel, source: str, target: str) -> dict[str, NDArray]:
    """Return the weights of every site, the last hidden state of both sides and, of a head, the logits."""
    start = ENCODER_DECODERS[model.config.model_type]["decoder_start_token_id"]
    tokens = [start, *word_tokenizer().encode(target, add_special_tokens=False)]
    given = {"input_ids": [word_tokenizer().encode(source)], "decoder_input_ids": [tokens]}
    options = {"output_attentions": True, "output_hidden_states": True, "return_dict": True}
    with torch.no_grad():
        result = model(**{name: torch.tensor(ids) for name, ids in given.items()}, **options)
    names = {
        "encoder_attentions": "encoder.{}",
        "decoder_attentions": "decoder.{}",
        "cross_attentions": "decoder.{}.cross",
    }
    found = {
        f"weights@{name.format(layer)}": each[0].numpy()
        for key, name in names.items()
        for layer, each in enumerate(result[key])
    }
    found["hidden@encoder.1"] = result.encoder_last_hidden_state[0].numpy()
    found |= {"logits": result.logits[0].numpy()} if "logits" in result else {}
    return found | {"hidden@decoder.1": result.decoder_hidden_states[-1][0].numpy()}


@pytest.mark.parametrize("kind", SHORT)
def test_every_site_and_both_hidden_states_are_those_of_eager(kind: str, client: AttentionClient) -> None:
    """Over gRPC, weights of all sites, hidden states of both sides, and logits of a head, equal the source's."""
    model = model_of(kind)
    outputs = [OutputSpec("weights", layers=["*"]), OutputSpec("hidden", layers=["encoder.1", "decoder.1"])]
    outputs += [OutputSpec("logits")] if kind in TASKS else []
    for source, target in TEXTS:
        answer = client.attend(kind, text=target, memory_text=source, outputs=outputs)
        expected = eager(model, source, target)
        assert set(answer.outputs) == set(expected)
        for name, value in expected.items():
            assert distance(answer[name], value) < TOLERANCE, name


def test_greedy_steps_over_a_kept_source_are_those_of_generate(client: AttentionClient) -> None:
    """The most probable token behind the target, asked for step by step over a memory, gives `generate`'s tokens; so
    do the client's `generate` and `translate`."""
    model = model_of(HEADED)
    model.generation_config.update(eos_token_id=None, forced_eos_token_id=None, bad_words_ids=None, pad_token_id=PAD)
    source = "w9 w14 w88 w5 w5 w70 w23"
    ids = torch.tensor([word_tokenizer().encode(source)])
    expected = model.generate(ids, max_new_tokens=9, do_sample=False, num_beams=1)[0].tolist()
    memory = client.create_memory(HEADED, memory_text=source)
    found = [ENCODER_DECODERS[HEADED]["decoder_start_token_id"]]
    while len(found) < len(expected):
        result = client.attend(HEADED, token_ids=found, memory=memory, outputs=["predictions"])
        found.append(result.predictions[0].id)
    assert found == expected
    steps = list(client.generate(HEADED, memory_text=source, tokens=9, outputs=["weights"]))
    assert [step.id for step in steps] == expected[1 : 1 + len(steps)]
    assert steps[-1].ends == ("length" if len(steps) == 9 else "end")
    assert {step.result.weights.shape[1:] for step in steps} == {(1, len(ids[0]))}
    said = translate(client, HEADED, source).words[: len(found) - 1]
    assert list(said) == word_tokenizer().convert_ids_to_tokens(expected[1:])
