"""Translation of English number words to German: the words correspond but differ in order."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from attention_proto.attention.v1.attention_pb2 import Example as ManifestExample
from attention_proto.attention.v1.attention_pb2 import Predictor
from torch import Tensor, nn
from torch.nn import functional

from attention_export.blocks import CrossAttention, Dims, Stages, join
from attention_export.model import Model, TextFront
from attention_export.tasks.layers import Context, Embedding, drop_context
from attention_export.tasks.numerals import (
    ENGLISH,
    ENGLISH_TENS,
    GERMAN,
    GERMAN_TENS,
    KINDS,
    UNALIGNED,
    english,
    german,
    split_numbers,
)
from attention_export.tasks.text import word_tokenizer
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

WIDTH, HEADS = 64, 4
BATCH, RATE = 64, 3e-3
BEGIN, END = "[BEGIN]", "[END]"
MAX_TOKENS, MAX_MEMORY_TOKENS = 8, 7  # the lengths of 1121, the longest number
CONTEXT_DROP, HEAD_DROP = 0.5, 0.3  # shares of the values and of the examples in training
ILLUSTRATED = 4021

LABELS = [*dict.fromkeys([*GERMAN, "ein", "und", "hundert", "tausend", *GERMAN_TENS[2:]]), END]
TOKENIZER = word_tokenizer(LABELS[:-1], begin=BEGIN)
MEMORY_TOKENIZER = word_tokenizer([*ENGLISH, "hundred", "thousand", *ENGLISH_TENS[2:]], end=END)


class Decoder(nn.Module):
    """The German words so far, INT64 (B, T) -> query (B, T, D), which seeks the next English word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding(TOKENIZER.get_vocab_size(), MAX_TOKENS, WIDTH)
        self.context = Context(WIDTH, HEADS, causal=True)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.context(self.embedding(tokens)),)


class Encoder(nn.Module):
    """The English words, INT64 (B, S) -> key (B, S, D), each in the context of its number. The value is the key."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding(MEMORY_TOKENIZER.get_vocab_size(), MAX_MEMORY_TOKENS, WIDTH)
        self.context = Context(WIDTH, HEADS)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.context(self.embedding(tokens)),)


class NextWord(nn.Module):
    """Rows of the output (N, D) -> the probabilities of the next German word (N, labels)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, len(LABELS)))

    def forward(self, rows: Tensor) -> tuple[Tensor]:
        return (self.logits(rows).softmax(-1),)


class Network(nn.Module):
    """Encoder, decoder and block: the head reads the block's output alone, so only attended words are translated."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Decoder()
        self.memory_front = Encoder()
        self.block = CrossAttention(Dims(query=WIDTH, heads=HEADS))
        self.head = NextWord()

    def forward(self, source: Tensor, target: Tensor) -> Stages:
        """Attend from German (B, T) over English (B, S)."""
        (query,), (key,) = self.front(target), self.memory_front(source)
        if not self.training:
            stages: Stages = self.block(query, key)
            return stages
        stages = self.block(query, key, drop_context(self.memory_front.embedding.tokens(source), key, CONTEXT_DROP))
        return stages._replace(output=self.block.combine(join(drop_heads(stages.heads, HEAD_DROP))))


def drop_heads(heads: Tensor, share: float) -> Tensor:
    """Zero all heads but a random one, (B, H, T, Dv), in a share of the examples, so that each learns the whole task.

    A form of DropHead (Zhou et al., 2020). Without it, each head aligns a part of the words only.
    """
    batch, count = heads.shape[:2]
    alone = functional.one_hot(torch.randint(count, (batch,)), count) * count  # (B, H)
    return heads * torch.where(torch.rand(batch, 1) < share, alone, 1)[:, :, None, None]


def learn(seed: int, steps: int, on_progress: OnProgress) -> TrainingRun:
    """Train on some numbers, and measure translation and alignment on held-out numbers."""
    known, unknown = split_numbers(seed)
    held_out = [encode(number) for number in unknown]
    batches, network = balanced(known), Network()
    untrained = copy.deepcopy(network).eval()
    run = partial(fit, steps=steps, rate=RATE, on_progress=on_progress)
    losses = run(network, lambda: loss(network, *batches.draw()), run="encoder and decoder")
    head = int(evaluate(network, map(encode, known)).aligned.mean(0).argmax())  # chosen before it is measured
    before = evaluate(untrained, held_out)
    figures = {
        **measure(evaluate(network, held_out), head),
        "untrained.exact": float(before.exact.mean()),
        "untrained.alignment": float(before.aligned.mean(0).max()),
    }
    illustration = illustrate({"untrained": untrained, "trained": network}, head)
    return TrainingRun(build_model(network), losses, figures, len(known), len(held_out), illustration)


def balanced(numbers: Sequence[int]) -> Batches:
    """Make batches with equal shares of each count of digits, and within a count of each last word.

    Otherwise few numbers would end in "hundert", and the end after it would not be learned.
    """
    endings = [(len(str(number)), german(number)[-1].text) for number in numbers]
    frequency, variety = Counter(endings), Counter(digits for digits, _ in set(endings))
    shares = [1 / (frequency[ending] * variety[ending[0]]) for ending in endings]
    return Batches([encode(number) for number in numbers], BATCH, shares)


def encode(number: int) -> Example:
    """Return English (S,) and German (T,) tokens, and each next word's label, English position and kind, (T,) each."""
    words = german(number)
    text = [word.text for word in words]
    next_words = [LABELS.index(word) for word in [*text, END]]
    sources = [*(word.source for word in words), UNALIGNED]
    kinds = [*(KINDS.index(word.kind) if word.kind else UNALIGNED for word in words), UNALIGNED]
    source = MEMORY_TOKENIZER.encode(" ".join(english(number))).ids
    target = TOKENIZER.encode(" ".join(text)).ids
    return tuple(map(torch.tensor, (source, target, next_words, sources, kinds)))


def loss(network: Network, source: Tensor, target: Tensor, next_words: Tensor, *_: Tensor) -> Tensor:
    """Return the cross-entropy of the next words. The alignment is not part of the loss: no weight is supervised."""
    logits = network.head.logits(network(source, target).output)  # (B, T, labels)
    return functional.cross_entropy(logits.flatten(0, 1), next_words.flatten())


class Evaluation(NamedTuple):
    """A network's translations, and its weights at the W German words that translate an English one."""

    exact: Tensor  # (N,), whether the whole number is right
    kinds: Tensor  # (W,)
    aligned: Tensor  # (W, H), whether the largest weight is on the English word
    weight: Tensor  # (W, H), the weight on the English word


@torch.no_grad()
def evaluate(network: Network, examples: Iterable[Example]) -> Evaluation:
    """Translate encoded numbers.

    Each next word is predicted after the right words. Greedy decoding gives the right number if, and only if, all these
    predictions are right, since each of its steps then has the same words before it.
    """
    batches = [_evaluate_batch(network, *group) for group in stack_by_shape(examples)]
    return Evaluation(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


def _evaluate_batch(
    network: Network, source: Tensor, target: Tensor, next_words: Tensor, sources: Tensor, kinds: Tensor
) -> Evaluation:
    stages = network(source, target)
    right = network.head(stages.output)[0].argmax(-1) == next_words  # (B, T)
    translates = sources != UNALIGNED  # (B, T)
    weights = stages.weights.transpose(1, 2)[translates]  # (W, H, S)
    gold = sources[translates][:, None]  # (W, 1)
    weight = weights.gather(-1, gold[..., None].expand(-1, HEADS, 1)).squeeze(-1)
    return Evaluation(right.all(-1).double(), kinds[translates], (weights.argmax(-1) == gold).double(), weight)


def measure(result: Evaluation, head: int) -> dict[str, float]:
    """Return the share of exact translations, and one head's alignment accuracy in all and for each kind of word."""
    aligned = {kind: float(result.aligned[result.kinds == index, head].mean()) for index, kind in enumerate(KINDS)}
    return {
        "exact": float(result.exact.mean()),
        "head": float(head),
        "alignment": float(result.aligned[:, head].mean()),
        **{f"{kind}.alignment": value for kind, value in aligned.items()},
        "weight": float(result.weight[:, head].mean()),
    }


EXAMPLES = [
    ManifestExample(
        text="ein und", memory_text="twenty one", note="the next word is zwanzig, and a head aligns it with twenty"
    ),
    ManifestExample(text="", memory_text="four thousand twenty one", note="the first word of a translation"),
    ManifestExample(text="", memory_text="seven hundred six", note="the first word of a translation"),
]


def build_model(network: Network) -> Model:
    """Return the network as a served model."""
    return Model(
        license=LICENSE,
        block=network.block,
        description="English number words to German, 0 to 9999, a word at a time: the text is the German so far.",
        text=TextFront(
            TOKENIZER,
            network.front,
            MEMORY_TOKENIZER,
            network.memory_front,
            max_tokens=MAX_TOKENS,
            max_memory_tokens=MAX_MEMORY_TOKENS,
        ),
        head=network.head,
        predictors=[Predictor(name="next", rows=Predictor.ROWS_LAST, labels=LABELS)],
        examples=EXAMPLES,
    )


@torch.no_grad()
def illustrate(networks: Mapping[str, Network], head: int) -> Illustration:
    """Return each network's weights of one head for a held-out number."""
    source, target, *_ = (tensor[None] for tensor in encode(ILLUSTRATED))
    words = [*(word.text for word in german(ILLUSTRATED)), END]
    panels = [
        Panel(title, words, network(source, target).weights[0, head].numpy()) for title, network in networks.items()
    ]
    return Illustration(" ".join(english(ILLUSTRATED)), [*english(ILLUSTRATED), END], panels)


TASK = Task(
    name="numbers",
    model="cross-attention",
    steps=2_500,
    bars={
        "exact": Bar(at_least=0.98),
        "alignment": Bar(at_least=0.95),
        "swapped_unit.alignment": Bar(at_least=0.98),
        "swapped_ten.alignment": Bar(at_least=0.98),
        "weight": Bar(at_least=0.85),
    },
    learn=learn,
)
