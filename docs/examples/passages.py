"""Which of five passages an answer was read from, by the attention of a served decoder.

A passage tells what two persons like: `passage Anna tea Bert milk`. Behind five passages stands a question,
`question Anna`, and the decoder predicts `tea`. It is trained on answers alone. In one head, which the training finds
and the manifest names, the last row attends to the fact that the answer comes from: the weights of that row, summed
over each passage, tell which one was read.

    python docs/examples/passages.py train models   # half a minute on one core; imported as models/passages/1
    python docs/examples/passages.py ask            # of a server of these models
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from attention_client import AttentionClient, OutputSpec
from attention_export.importing.transformer import import_transformer
from attention_export.manifest import read_manifest, write_manifest
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = (
    *("Anna", "Bert", "Carl", "Dora", "Emil", "Fritz", "Greta", "Hans", "Ida", "Jan", "Karla", "Lars"),
    *("Mia", "Nils", "Olga", "Paul", "Quinn", "Rosa", "Sven", "Tina", "Udo", "Vera", "Wilma", "Xaver"),
)
THINGS = (
    *("tea", "milk", "bread", "honey", "plums", "nuts", "rice", "soup", "cake", "wine", "salt", "fish"),
    *("apples", "pears", "figs", "dates", "beans", "corn", "leeks", "kale", "cheese", "eggs", "jam", "oats"),
)
PASSAGE, QUESTION, END = "passage", "question", "</s>"
WORDS = (END, PASSAGE, QUESTION, *NAMES, *THINGS)
IDS = {word: row for row, word in enumerate(WORDS)}
PASSAGES, FACTS = 5, 2
PASSAGE_TOKENS = 1 + 2 * FACTS
HELD_OUT = 60  # facts that no training text has
STEPS, BATCH, QUESTIONS, RATE, SEED = 600, 64, 6, 5e-3, 0
TESTED = 200  # contexts, with QUESTIONS questions each
IGNORED = -100  # rows that are no question
MODEL = "passages"

Fact = tuple[str, str]


@dataclass(frozen=True)
class Context:
    """Passages of facts, and questions behind them.

    Attributes:
        facts: all, `FACTS` a passage.
        asked: indices of facts.
    """

    facts: list[Fact]
    asked: list[int]

    def ids(self) -> tuple[list[int], list[int]]:
        """Return tokens, and of each row the answer's token; IGNORED where nothing is asked."""
        words = passages(self.facts).split()
        labels = [IGNORED] * len(words)
        for name, thing in (self.facts[index] for index in self.asked):
            words += [QUESTION, name, thing]
            labels += [IGNORED, IDS[thing], IGNORED]
        return [IDS[word] for word in words], labels


def passages(facts: list[Fact]) -> str:
    """Return the text of passages, `FACTS` facts each."""
    words = []
    for begin in range(0, len(facts), FACTS):
        words += [PASSAGE, *(word for fact in facts[begin : begin + FACTS] for word in fact)]
    return " ".join(words)


def draw(chance: random.Random, count: int, held_out: frozenset[Fact], *, asks_held_out: bool = False) -> Context:
    """Return a context of so many passages, without held-out facts; or one that asks for a held-out fact alone."""
    facts = []
    for name in chance.sample(NAMES, count * FACTS):
        known = [thing for thing in THINGS if (name, thing) not in held_out]
        facts.append((name, chance.choice(known)))
    if not asks_held_out:
        return Context(facts, [chance.randrange(len(facts)) for _ in range(QUESTIONS)])
    index = chance.randrange(len(facts))
    taken = {name for name, _ in facts[:index] + facts[index + 1 :]}
    facts[index] = chance.choice(sorted(fact for fact in held_out if fact[0] not in taken))
    return Context(facts, [index])


def tensors(contexts: Iterable[Context]) -> tuple[Tensor, Tensor]:
    """Return tokens and labels, [B, T] each."""
    tokens, labels = zip(*[context.ids() for context in contexts], strict=True)
    return torch.tensor(tokens), torch.tensor(labels)


def make() -> LlamaForCausalLM:
    """Return an untrained decoder of two layers with two heads each."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=IDS[END],
            pad_token_id=IDS[END],
            initializer_range=0.05,
            attn_implementation="eager",
        )
    )


def train(model: LlamaForCausalLM, held_out: frozenset[Fact], steps: int) -> None:
    """Train on answers, first of one passage, in the end of five: begun with five, to look up takes far longer."""
    chance = random.Random(SEED)  # no secret
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        count = min(PASSAGES, 1 + (PASSAGES + 1) * step // steps)
        tokens, labels = tensors(draw(chance, count, held_out) for _ in range(BATCH))
        loss = functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()


def measure(model: LlamaForCausalLM, contexts: list[Context]) -> tuple[float, Tensor]:
    """Return the share of right answers, and by head [layers, heads] that of answers whose passage has most weight."""
    tokens, labels = tensors(contexts)
    rows = torch.nonzero(labels != IGNORED)
    with torch.no_grad():
        result = model.eval()(tokens, output_attentions=True)
    answered = result.logits[rows[:, 0], rows[:, 1]].argmax(-1) == labels[rows[:, 0], rows[:, 1]]
    weights = torch.stack(result.attentions)[:, rows[:, 0], :, rows[:, 1]]  # [questions, layers, heads, keys]
    spans = weights[..., : PASSAGES * PASSAGE_TOKENS].unflatten(-1, (PASSAGES, PASSAGE_TOKENS)).sum(-1)
    asked = torch.tensor([index // FACTS for context in contexts for index in context.asked])
    found = spans.argmax(-1) == asked[:, None, None]
    return answered.double().mean().item(), found.double().mean(0)


def learn(repository: Path, steps: int = STEPS) -> dict[str, float]:
    """Train, import, and write what was measured on held-out facts into the manifest; return the figures."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    chance = random.Random(SEED + 1)  # no secret
    held_out = frozenset(chance.sample([(name, thing) for name in NAMES for thing in THINGS], HELD_OUT))
    known = [draw(chance, PASSAGES, held_out) for _ in range(TESTED)]
    unknown = [draw(chance, PASSAGES, held_out, asks_held_out=True) for _ in range(TESTED * QUESTIONS)]
    model, began = make(), time.perf_counter()
    before, _ = measure(model, unknown)
    train(model.train(), held_out, steps)
    _, of_known = measure(model, known)
    layer, head = divmod(int(of_known.argmax()), of_known.shape[1])  # chosen before it is measured
    exact, of_unknown = measure(model, unknown)
    figures = {"exact": exact, "passage": of_unknown[layer, head].item(), "layer": layer, "head": head}
    words = Tokenizer(models.WordLevel(IDS, unk_token=END))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        special = {"eos_token": END, "pad_token": END, "unk_token": END}
        PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
        version = import_transformer(Path(folder), repository, MODEL, license_="Apache-2.0", source="passages.py")
    manifest = read_manifest(version)
    manifest.training.task, manifest.training.seed, manifest.training.steps = MODEL, SEED, steps
    manifest.training.train_examples, manifest.training.held_out_examples = steps * BATCH, len(unknown)
    manifest.training.parameters = model.num_parameters()
    manifest.training.seconds = time.perf_counter() - began
    manifest.training.figures.update(figures | {"untrained.exact": before})
    write_manifest(version, manifest)
    return figures


def ask(target: str, name: str) -> dict[str, float]:
    """Ask what a person likes; print the answer and the part that each passage has in it, and return the parts.

    The baseline is the same question behind as many passages about further persons, which do not have the answer.
    """
    chance = random.Random(name)  # no secret
    names = [name, *chance.sample([each for each in NAMES if each != name], 2 * PASSAGES * FACTS - 1)]
    facts = [(each, chance.choice(THINGS)) for each in names]
    own, further = facts[: PASSAGES * FACTS], facts[PASSAGES * FACTS :]
    chance.shuffle(own)
    with AttentionClient(target) as client:
        figures = client.model(MODEL).manifest.training.figures
        memory, baseline = (client.create_memory(MODEL, memory_text=passages(each)) for each in (own, further))
        weights = OutputSpec(
            "weights", rows=[-1], pairs=[f"{figures['layer']:g}.{figures['head']:g}"], baseline=baseline
        )
        answer = client.attend(
            MODEL, text=f"{QUESTION} {name}", memory=memory, outputs=[weights, OutputSpec("predictions")]
        )
    row = answer["weights"][0, 0, : PASSAGES * PASSAGE_TOKENS]
    parts = {}
    for begin in range(0, len(row), PASSAGE_TOKENS):
        text = " ".join(answer.key_tokens[begin : begin + PASSAGE_TOKENS])
        parts[text] = float(row[begin : begin + PASSAGE_TOKENS].sum())
        print(f"{parts[text]:+.3f}  {text}")
    print(f"{name} likes {answer.predictions[0].label}")
    return parts


def main() -> None:
    """Train and import the model, or ask a server of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train").add_argument("models", type=Path)
    asking = commands.add_parser("ask")
    asking.add_argument("--target", default="127.0.0.1:50051")
    asking.add_argument("--name", choices=NAMES, default=NAMES[0])
    arguments = parser.parse_args()
    if arguments.command == "ask":
        ask(arguments.target, arguments.name)
    else:
        print(learn(arguments.models))


if __name__ == "__main__":
    main()
