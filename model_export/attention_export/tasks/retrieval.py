"""Key-value retrieval: in "cat=3 dog=7 owl=1 dog=?", find the pair with the word and answer 7."""

import copy
import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

import torch
from attention_proto.attention.v1.attention_pb2 import Example as ManifestExample
from attention_proto.attention.v1.attention_pb2 import Predictor
from torch import Tensor, nn
from torch.nn import functional

from attention_export.blocks import Dims, DotProduct, SelfAttention, Stages
from attention_export.model import Model, TextFront
from attention_export.tasks.layers import Readouts
from attention_export.tasks.text import word_tokenizer, words
from attention_export.training import (
    LICENSE,
    Bar,
    Batches,
    Example,
    Illustration,
    OnProgress,
    Panel,
    Task,
    TrainingRun,
    fit,
    stack_by_shape,
)

WORDS = words(
    "ant bat bee cat cow crab crow dog duck eel elk emu fox frog goat hen lion mole owl pig rat seal swan wolf"
)
NUMBERS = [str(number) for number in range(1, 25)]
PAIRS = range(8, 17)  # number of pairs in a sequence
TRAIN, HELD_OUT = 8_000, 2_000
HELD_OUT_SHARE = 0.1  # of all pairs of a word and a number
WIDTH = 64
BATCH, RATE = 64, 1e-2

Pair = tuple[str, str]
Row = tuple[list[Pair], int]  # the pairs, and the index of the requested pair

TOKENIZER = word_tokenizer([f"{word}={number}" for word, number in product(WORDS, [*NUMBERS, "?"])], separators=",")
ILLUSTRATED = tuple(zip(words("cat dog owl fox bee pig hen cow"), words("3 7 12 5 21 9 16 2"), strict=True))


class Front(nn.Module):
    """A random, untrained embedding: tokens INT64 (B, T) -> query (B, T, D).

    A pair's vector is the sum of a vector of the word and one of the number; a question's vector is independent. So
    the vectors have no similarity of question and pair: M_Q and M_K have to learn the match.
    """

    def __init__(self) -> None:
        super().__init__()
        of_words, of_numbers, of_questions = (_vectors(len(group)) for group in (WORDS, NUMBERS, WORDS))
        of_pairs = of_words[:, None] + of_numbers  # (words, numbers, D)
        table = torch.cat([of_pairs, of_questions[:, None]], 1).flatten(0, 1)  # in the tokenizer's order
        self.embedding = nn.Embedding.from_pretrained(torch.cat([torch.zeros(1, WIDTH), table]))

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.embedding(tokens),)


class Network(nn.Module):
    """A block between a front and a head that reads the number from the question's row."""

    def __init__(self, front: Front, block: DotProduct) -> None:
        super().__init__()
        self.front = front
        self.block = block
        self.head = Readouts(WIDTH, [len(NUMBERS)])

    def forward(self, tokens: Tensor) -> Stages:
        """Attend from each token over all, tokens (B, T)."""
        stages: Stages = self.block(*self.front(tokens))
        return stages


def split_pairs(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return training pairs and held-out pairs; no training sequence contains a held-out pair."""
    pairs = list(product(WORDS, NUMBERS))
    random.Random(seed).shuffle(pairs)  # noqa: S311 - data, not secrets
    held_out = round(len(pairs) * HELD_OUT_SHARE)
    return pairs[held_out:], pairs[:held_out]


def sequences(asked: Sequence[Pair], others: Sequence[Pair], count: int, seed: int) -> list[Row]:
    """Make sequences without repeated words or numbers, so that only the word determines the answer.

    Args:
        asked: the candidates for the requested pair.
        others: candidates for the remaining pairs.
        count: the number of sequences.
        seed: the same seed gives the same sequences.
    """
    rng = random.Random(seed)  # noqa: S311 - data, not secrets
    return [_sequence(rng, rng.choice(asked), others) for _ in range(count)]


def _sequence(rng: random.Random, asked: Pair, others: Sequence[Pair]) -> Row:
    pairs = [asked]
    length = rng.choice(PAIRS)
    while len(pairs) < length:
        word, number = rng.choice(others)
        if all(word != w and number != n for w, n in pairs):
            pairs.append((word, number))
    rng.shuffle(pairs)
    return pairs, pairs.index(asked)


def text_of(pairs: Sequence[Pair], asked: int) -> str:
    """Return a sequence as text: cat=3 dog=7 cat=?."""
    return " ".join(f"{word}={number}" for word, number in [*pairs, (pairs[asked][0], "?")])


def learn(seed: int, steps: int, on_progress: OnProgress) -> TrainingRun:
    """Train the block, and for comparison a head on the plain dot product of the same vectors; measure both.

    The block is measured on held-out pairs. The comparisons are measured on training pairs in new sequences, which is
    easier, and stay at chance.
    """
    known, unknown = split_pairs(seed)
    batches = Batches([encode(*row) for row in sequences(known, known, TRAIN, seed)], BATCH)
    held_out = sequences(unknown, [*known, *unknown], HELD_OUT, seed + 1)
    easier = sequences(known, known, HELD_OUT, seed + 2)
    front = Front()
    network, plain = Network(front, SelfAttention(Dims(query=WIDTH))), Network(front, DotProduct())
    untrained = copy.deepcopy(network).eval()
    run = partial(fit, steps=steps, rate=RATE, on_progress=on_progress)
    losses = run(network, lambda: loss(network, *batches.draw()), run="self-attention")
    run(plain, lambda: loss(plain, *batches.draw()), run="plain dot product, to compare")
    figures = {
        **measure(network, held_out),
        **{f"untrained.{name}": figure for name, figure in measure(untrained, easier).items()},
        **{f"dot_product.{name}": figure for name, figure in measure(plain, easier).items()},
        "chance": sum(1 / len(pairs) for pairs, _ in easier) / len(easier),
    }
    illustration = illustrate({"plain dot product": plain, "untrained": untrained, "trained": network})
    return TrainingRun(build_model(network), losses, figures, TRAIN, HELD_OUT, illustration)


def encode(pairs: Sequence[Pair], asked: int) -> Example:
    """Return tokens (T,), the requested pair's position () and its number's label ()."""
    tokens = torch.tensor(TOKENIZER.encode(text_of(pairs, asked)).ids)
    return tokens, torch.tensor(asked), torch.tensor(NUMBERS.index(pairs[asked][1]))


def loss(network: Network, tokens: Tensor, _: Tensor, answers: Tensor) -> Tensor:
    """Return the cross-entropy of the numbers. The pair's position is not part of the loss: no weight is supervised."""
    (logits,) = network.head.logits(network(tokens).output[:, -1])
    return functional.cross_entropy(logits, answers)


@torch.no_grad()
def measure(network: Network, rows: Sequence[Row]) -> dict[str, float]:
    """Return the accuracy, and the question's mean weight on the right pair."""
    groups = stack_by_shape(encode(*row) for row in rows)
    right, weight = (
        torch.cat(found) for found in zip(*(evaluate_batch(network, *group) for group in groups), strict=True)
    )
    return {"accuracy": float(right.double().mean()), "weight": float(weight.mean())}


def evaluate_batch(network: Network, tokens: Tensor, asked: Tensor, answers: Tensor) -> Example:
    """Return whether each answer is right (B,), and the weight on the requested pair (B,)."""
    stages = network(tokens)
    (probabilities,) = network.head(stages.output[:, -1])
    weights = stages.weights[:, 0, -1]  # (B, T)
    return probabilities.argmax(-1) == answers, weights.gather(-1, asked[:, None]).squeeze(-1)


EXAMPLES = [
    ManifestExample(text="cat=3 dog=7 cow=1 dog=?", note="the question attends to the pair that it is about, dog=7"),
    ManifestExample(text="owl=12 fox=4 owl=?", note="the question attends to the pair of owl"),
]


def build_model(network: Network) -> Model:
    """Return the network as a served model."""
    return Model(
        license=LICENSE,
        block=network.block,
        description='Key-value retrieval: finds the pair that a question is about, as in "cat=3 dog=7 owl=1 dog=?".',
        text=TextFront(TOKENIZER, network.front),
        head=network.head,
        predictors=[Predictor(name="value", rows=Predictor.ROWS_LAST, labels=NUMBERS)],
        examples=EXAMPLES,
    )


@torch.no_grad()
def illustrate(networks: Mapping[str, Network]) -> Illustration:
    """Return each network's weights in one sequence, a row for the question about each pair."""
    tokens = torch.stack([encode(ILLUSTRATED, asked)[0] for asked in range(len(ILLUSTRATED))])
    questions = [f"{word}=?" for word, _ in ILLUSTRATED]
    panels = [Panel(title, questions, network(tokens).weights[:, 0, -1].numpy()) for title, network in networks.items()]
    pairs = [f"{word}={number}" for word, number in ILLUSTRATED]
    return Illustration(" ".join(pairs), [*pairs, "itself"], panels)


def _vectors(count: int) -> Tensor:
    """Draw random vectors of about length 2.5, (count, D)."""
    vectors: Tensor = torch.randn(count, WIDTH) * 2.5 * WIDTH**-0.5
    return vectors


TASK = Task(
    name="retrieval",
    model="self-attention",
    steps=1_500,
    bars={
        "accuracy": Bar(at_least=0.99),
        "weight": Bar(at_least=0.9),
        **{
            f"{other}.{figure}": Bar(at_most=0.15)
            for other in ("untrained", "dot_product")
            for figure in ("accuracy", "weight")
        },
    },
    learn=learn,
)
