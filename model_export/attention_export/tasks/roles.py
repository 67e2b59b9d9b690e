"""Semantic roles of a verb: giver, recipient, object, three relations that three heads find at once."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from attention_proto.attention.v1.attention_pb2 import Example as ManifestExample
from attention_proto.attention.v1.attention_pb2 import Predictor
from torch import Tensor, nn
from torch.nn import functional

from attention_export.blocks import Dims, MultiHead, Stages
from attention_export.model import Model, TextFront
from attention_export.tasks.layers import Context, Embedding, Readouts, drop_context
from attention_export.tasks.sentences import (
    ARTICLE,
    ROLES,
    TEMPLATES,
    Sentence,
    labels,
    sentences,
    split_pairs,
    verb_forms,
    vocabulary,
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

WIDTH = 48
MAX_TOKENS = 17  # the longest sentence of the templates
TRAIN, HELD_OUT = 8_000, 2_000
BATCH, RATE = 64, 3e-3
CONTEXT_DROP = 0.3  # share of the values in training

TOKENIZER = word_tokenizer(vocabulary())


class Front(nn.Module):
    """Tokens INT64 (B, T) -> query (B, T, D), each word in the context of its sentence. Key and value are the query."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding(TOKENIZER.get_vocab_size(), MAX_TOKENS, WIDTH)
        self.context = Context(WIDTH, heads=3)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.context(self.embedding(tokens)),)


class Network(nn.Module):
    """Front, block and head. With three heads, role r is predicted from head r alone, so each head has one role."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.front = Front()
        self.block = MultiHead(Dims(query=WIDTH, heads=heads))
        self.head = Readouts(WIDTH, [len(labels(role)) for role in ROLES])
        separate_heads(self.block)

    def forward(self, tokens: Tensor) -> Stages:
        """Attend from each word over its sentence, tokens (B, T)."""
        embedded = self.front.embedding(tokens)  # (B, T, D)
        x = self.front.context(embedded)
        stages: Stages = self.block(x, x, drop_context(embedded, x, CONTEXT_DROP) if self.training else x)
        return stages


def separate_heads(block: MultiHead) -> None:
    """Make M_O block-diagonal, also under training: part r of the output comes from head r alone."""
    dims = block.dims
    apart = torch.block_diag(*[torch.ones(dims.value_head, dims.output // dims.heads)] * dims.heads)
    with torch.no_grad():
        block.M_O.mul_(apart)
    block.M_O.register_hook(apart.mul)


def learn(seed: int, steps: int, on_progress: OnProgress) -> TrainingRun:
    """Train three heads and, for comparison, one head of the same width; measure both on held-out sentences."""
    train_pairs, held_out_pairs = split_pairs(seed)
    batches = Batches([encode(sentence) for sentence in sentences(train_pairs, TRAIN, seed)], BATCH)
    held_out = sentences(held_out_pairs, HELD_OUT, seed + 1)
    network, single = Network(heads=3), Network(heads=1)
    untrained = copy.deepcopy(network).eval()
    run = partial(fit, steps=steps, rate=RATE, on_progress=on_progress)
    losses = run(network, lambda: loss(network, *batches.draw()), run="three heads")
    run(single, lambda: loss(single, *batches.draw()), run="one head, to compare")
    figures = compare(network, single, untrained, held_out)
    illustration = illustrate({"three heads, untrained": untrained, "one head": single, "three heads": network})
    return TrainingRun(build_model(network), losses, figures, TRAIN, HELD_OUT, illustration)


def encode(sentence: Sentence) -> Example:
    """Return tokens (T,), the verb's position (), the roles' positions (3,) and labels (3,), and the template ()."""
    positions = [sentence.at[role] for role in ROLES]
    answers = [labels(role).index(sentence.words[at]) for role, at in zip(ROLES, positions, strict=True)]
    numbers = sentence.at["verb"], positions, answers, list(TEMPLATES).index(sentence.template)
    return torch.tensor(TOKENIZER.encode(" ".join(sentence.words)).ids), *map(torch.tensor, numbers)


def loss(network: Network, tokens: Tensor, verb: Tensor, _: Tensor, answers: Tensor, *__: Tensor) -> Tensor:
    """Return the summed cross-entropy of the roles. Positions are not part of the loss: no weight is supervised."""
    logits = network.head.logits(take_rows(network(tokens).output, verb))
    return torch.stack([functional.cross_entropy(x, y) for x, y in zip(logits, answers.T, strict=True)]).sum()


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """(B, T, ..) -> (B, ..): one row of each sequence."""
    return x[torch.arange(len(x)), rows]


EXAMPLES = [
    ManifestExample(
        text="I gave my cat Tater a toy", note="at the verb each head finds a role: giver, receiver, thing"
    ),
    ManifestExample(text="Mia was shown a letter by Leo", note="the same roles in the passive, with the giver last"),
    ManifestExample(text="the doctor sent her a book", note="the receiver is a pronoun"),
]


def build_model(network: Network) -> Model:
    """Return the network as a served model."""
    return Model(
        license=LICENSE,
        block=network.block,
        description='Who gave, to whom, what: three heads find the roles in "I gave my cat Tater a toy".',
        text=TextFront(TOKENIZER, network.front, max_tokens=MAX_TOKENS),
        head=network.head,
        predictors=[
            Predictor(name=role, rows=Predictor.ROWS_TOKENS, tokens=verb_forms(), labels=labels(role)) for role in ROLES
        ],
        examples=EXAMPLES,
    )


def compare(network: Network, single: Network, untrained: Network, held_out: Sequence[Sentence]) -> dict[str, float]:
    """Measure the three heads and the models that serve as comparison."""
    article, one, before = measure(network, [ARTICLE]), measure(single, held_out), measure(untrained, held_out)
    return {
        **measure(network, held_out),
        "article.accuracy": sum(article[f"{role}.accuracy"] for role in ROLES) / len(ROLES),
        "article.weight": min(article[f"{role}.weight"] for role in ROLES),
        "single_head.all.accuracy": one["all.accuracy"],
        "single_head.smallest_weight": min(one[f"{role}.weight"] for role in ROLES),
        "untrained.all.accuracy": before["all.accuracy"],
        "untrained.largest_weight": max(before[f"{role}.weight"] for role in ROLES),
    }


@torch.no_grad()
def measure(network: Network, examples: Sequence[Sentence]) -> dict[str, float]:
    """Return each role's accuracy, and its head's mean weight on the role's word.

    `other_roles.weight` is the largest mean weight of a head on the word of another role. A single head counts as the
    head of every role.
    """
    answered = [evaluate_batch(network, *group) for group in stack_by_shape(encode(example) for example in examples)]
    right, seen, template = (torch.cat(tensors) for tensors in zip(*answered, strict=True))
    all_right = right.all(-1)  # (N,)
    weights = seen.mean(0)  # (3, 3)
    return {
        **{f"{role}.accuracy": float(rate) for role, rate in zip(ROLES, right.double().mean(0), strict=True)},
        "all.accuracy": float(all_right.double().mean()),
        "worst_template.accuracy": min(float(all_right[template == t].double().mean()) for t in template.unique()),
        **{f"{role}.weight": float(weight) for role, weight in zip(ROLES, weights.diagonal(), strict=True)},
        "other_roles.weight": float(weights.fill_diagonal_(0).max()),
    }


def evaluate_batch(
    network: Network, tokens: Tensor, verb: Tensor, positions: Tensor, answers: Tensor, template: Tensor
) -> Example:
    """Return whether answers are right (B, 3), the heads' weights on the roles' words (B, 3, 3), the template (B,)."""
    stages = network(tokens)
    said = torch.stack([p.argmax(-1) for p in network.head(take_rows(stages.output, verb))], -1)  # (B, 3)
    weights = take_rows(stages.weights.transpose(1, 2), verb).expand(-1, len(ROLES), -1)  # (B, 3, T)
    return said == answers, weights.gather(-1, positions[:, None].expand(-1, len(ROLES), -1)), template


@torch.no_grad()
def illustrate(networks: Mapping[str, Network]) -> Illustration:
    """Return each network's weights in the article's sentence, from the verb, a row for each head."""
    tokens, verb, *_ = encode(ARTICLE)
    panels = []
    for title, network in networks.items():
        weights = network(tokens[None]).weights[0, :, verb].numpy()  # (H, T)
        panels.append(Panel(title, ROLES if len(weights) == len(ROLES) else ["all roles"], weights))
    return Illustration(" ".join(ARTICLE.words), ARTICLE.words, panels)


TASK = Task(
    name="roles",
    model="multi-head",
    steps=2_500,
    bars={
        **{f"{role}.accuracy": Bar(at_least=0.97) for role in ROLES},
        "all.accuracy": Bar(at_least=0.95),
        "worst_template.accuracy": Bar(at_least=0.90),
        **{f"{role}.weight": Bar(at_least=0.90) for role in ROLES},
        "other_roles.weight": Bar(at_most=0.05),
        "article.accuracy": Bar(at_least=1.0),
        "article.weight": Bar(at_least=0.90),
        "single_head.smallest_weight": Bar(at_most=1 / 3),
    },
    learn=learn,
)
