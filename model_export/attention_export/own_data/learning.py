"""Training on user data: with held-out rows, the weights that are best on these, and resumable runs."""

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention_proto.attention.v1.attention_pb2 import Predictor
from tokenizers import Tokenizer

from attention_export.blocks import BLOCKS, CrossAttention, DotProduct, SelfAttention
from attention_export.model import Model, TextFront
from attention_export.own_data.examples import Examples, make_examples
from attention_export.own_data.learner import BATCH, Learner
from attention_export.own_data.network import Network, Score, Sizes, score
from attention_export.own_data.rows import Data, DataError, Row, read_data
from attention_export.own_data.vocabulary import make_tokenizer
from attention_export.training import Illustration, OnProgress, Panel, Task, TrainedModel, TrainingRun

WIDTH = 64
HEADS = {"multi_head": 4, "cross_attention": 4}  # defaults; 1 for further blocks
EPOCHS, LEAST_STEPS = 20, 2_000  # the default limit: so many epochs, and at least so many steps
LEAST_HELD_OUT = 5
MAX_TOKENS = 512  # the default; more where a row is longer
DRAWN = 16  # positions, at most, in a figure


@dataclass(frozen=True)
class Options:
    """The options of training on user data.

    Attributes:
        block: a name in `BLOCKS`.
        heads: H; 0 is 4 for multi-head and cross-attention, otherwise 1.
        width: the width of embedding and output; 0 is 64. `dot_product` on vectors has the vectors' width.
        epochs: the limit of passes over the rows; 0 is 20, and at least 2,000 steps.
        steps: the limit of optimiser steps, in place of epochs.
        held_out: the share of rows used for evaluation only.
        patience: the number of evaluations without a lower loss after which training ends.
        max_tokens: the greatest length of a text, and of a memory text, that the model serves; 0 is 512, or the length
            of the longest row. For words alone.
    """

    block: str
    heads: int = 0
    width: int = 0
    epochs: int = 0
    steps: int = 0
    held_out: float = 0.2
    patience: int = 10
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if self.epochs and self.steps:
            raise ValueError("epochs and steps are two ways to say one thing; give one of them")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out:g}; give a share between 0 and 1, such as 0.2")

    def held_out_of(self, rows: int) -> int:
        """Return the number of held-out rows."""
        return round(rows * self.held_out)

    def most_steps(self, examples: int) -> int:
        """Return the limit in steps for a number of training examples."""
        epoch = math.ceil(examples / BATCH)
        return self.steps or self.epochs * epoch or max(EPOCHS * epoch, LEAST_STEPS)


@dataclass(frozen=True)
class OwnData(Task):
    """A task defined by a data file.

    Attributes:
        max_tokens: the greatest length of a text that the model will serve; 0 for vectors, of any length.
    """

    max_tokens: int

    def train(self, seed: int, steps: int, on_progress: OnProgress) -> TrainedModel:
        """Train for at most `steps` steps; the record has the number of steps taken."""
        trained = super().train(seed, steps, on_progress)
        trained.training.steps = len(trained.losses)
        return trained


def own_data(path: Path, name: str, options: Options, checkpoint: Path | None = None) -> OwnData:
    """Read and check a data file, and make its task.

    Args:
        path: a JSONL file; see `rows`.
        name: the model's name.
        options: the options of training.
        checkpoint: a folder to save the run in and to resume an interrupted run from.

    Returns:
        A task without bars. Its `train` raises CheckpointError if the checkpoint belongs to another run.

    Raises:
        DataError: a row or the file is not usable as training data.
        OSError: the file cannot be read.
        ValueError: the options contradict each other or the data.
    """
    data = read_data(path, with_memory=issubclass(BLOCKS[options.block], CrossAttention))
    held_out = options.held_out_of(len(data.rows))
    if not LEAST_HELD_OUT <= held_out < len(data.rows):
        raise DataError(
            f"{path}: has {len(data.rows)} rows, of which {held_out} would be held out; at least {LEAST_HELD_OUT} "
            "are needed to measure with, and at least 1 to learn from: add rows, or change the share"
        )
    _check_width(data, options)
    max_tokens = _max_tokens(data, options)
    learn = partial(_learn, data, options, checkpoint)
    return OwnData("data", name, options.most_steps(len(data.rows) - held_out), {}, learn, max_tokens)


def _check_width(data: Data, options: Options) -> None:
    learned = issubclass(BLOCKS[options.block], SelfAttention)
    if options.width and not learned and not data.of_words:
        raise ValueError("dot_product works on your vectors as they are; leave the width out, or take another block")


def _max_tokens(data: Data, options: Options) -> int:
    """Return the greatest length of a text to serve; 0 for vectors.

    Raises:
        ValueError: the option is for vectors, or a row is longer.
    """
    if not data.of_words:
        if options.max_tokens:
            raise ValueError("max_tokens is for words; vectors may be served at any length: leave it out")
        return 0
    longest = max(_longest(data), _longest_memory(data))
    if options.max_tokens and longest > options.max_tokens:
        raise ValueError(
            f"max_tokens is {options.max_tokens}, but {data.path} has a row of {longest}; give {longest} or more"
        )
    return options.max_tokens or max(MAX_TOKENS, longest)


def _longest(data: Data) -> int:
    return max(len(row.sequence) for row in data.rows)


def _longest_memory(data: Data) -> int:
    """Return the length of the longest memory; 0 without one."""
    return max(0 if row.memory is None else len(row.memory) for row in data.rows)


def _learn(
    data: Data, options: Options, checkpoint: Path | None, seed: int, steps: int, on_progress: OnProgress
) -> TrainingRun:
    parts = _split(data, options)
    tokenizer = _tokenizer(data, parts[0])
    train, held_out = (make_examples(part, tokenizer, data.classes, tagged=data.tagged) for part in parts)
    network = Network(options.block, _sizes(data, options, tokenizer))
    untrained = copy.deepcopy(network).eval()
    learner = Learner(network, train, held_out, steps)
    run = {**asdict(options), "most_steps": steps, "seed": seed, "data": data.digest, "torch": str(torch.__version__)}
    losses = learner.learn(options.patience, on_progress, checkpoint, run)
    figures = _figures(data, score(network, held_out), train, held_out) | {"best_step": float(learner.best.step)}
    illustration = _illustrate(data, parts[1], held_out, {"untrained": untrained, "trained": network})
    model = _build_model(data, options, tokenizer, network)
    return TrainingRun(model, losses, figures, len(train), len(held_out), illustration)


def _split(data: Data, options: Options) -> tuple[list[Row], list[Row]]:
    """Split the rows at random into training rows and held-out rows."""
    order = torch.randperm(len(data.rows)).tolist()
    count = options.held_out_of(len(data.rows))
    return [data.rows[index] for index in order[count:]], [data.rows[index] for index in order[:count]]


def _tokenizer(data: Data, rows: Sequence[Row]) -> Tokenizer | None:
    """Make a tokenizer of the words in the training rows; words of held-out rows alone are unknown, as in service."""
    if not data.of_words:
        return None
    sequences = (sequence for row in rows for sequence in (row.sequence, row.memory))
    return make_tokenizer(word for sequence in sequences if isinstance(sequence, tuple) for word in sequence)


def _sizes(data: Data, options: Options, tokenizer: Tokenizer | None) -> Sizes:
    first, width = data.rows[0], options.width or WIDTH
    query = key = width
    if not isinstance(first.sequence, tuple):
        query = key = first.sequence.shape[1]
    if first.memory is not None and not isinstance(first.memory, tuple):
        key = first.memory.shape[1]
    if not issubclass(BLOCKS[options.block], SelfAttention):
        width = query
    return Sizes(
        vocabulary=tokenizer.get_vocab_size() if tokenizer else 0,
        query=query,
        key=key,
        width=width,
        heads=options.heads or HEADS.get(options.block, 1),
        max_tokens=_max_tokens(data, options),
        longest=_longest(data),
        longest_memory=_longest_memory(data),
        labels=[len(labels) for labels in data.classes.values()],
        tagged=data.tagged,
    )


def _figures(data: Data, reached: Score, train: Examples, held_out: Examples) -> dict[str, float]:
    """Return the held-out loss, and each predictor's accuracy beside that of the most frequent label."""
    figures = {"loss": reached.loss}
    for index, (name, accuracy) in enumerate(zip(data.classes, reached.accuracies, strict=True)):
        learned, asked = (examples.answers[:, index].flatten().tolist() for examples in (train, held_out))
        asked = [answer for answer in asked if answer >= 0]
        (most_frequent, _), *_ = Counter(answer for answer in learned if answer >= 0).most_common(1)
        figures |= {f"{name}.accuracy": accuracy, f"{name}.majority": asked.count(most_frequent) / len(asked)}
    return figures


def _build_model(data: Data, options: Options, tokenizer: Tokenizer | None, network: Network) -> Model:
    """Return the network as a served model."""
    # The mean trains every position; with the first row alone, look-ups in a memory reached 64 % instead of 99 %.
    rows = Predictor.ROWS_ALL if data.tagged else Predictor.ROWS_MEAN
    text = None
    if network.front is not None and tokenizer is not None:
        memory = network.memory_front
        text = TextFront(
            tokenizer,
            network.front,
            memory_front=memory,
            allow_unknown=True,
            max_tokens=len(network.front.positions),
            max_memory_tokens=0 if memory is None else len(memory.positions),
        )
    said = ", ".join(data.classes)
    block: DotProduct = network.block
    return Model(
        block=block,
        description=f"Trained on {data.path.name}: a {options.block} block that predicts {said}.",
        text=text,
        head=network.head,
        predictors=[Predictor(name=name, rows=rows, labels=labels) for name, labels in data.classes.items()],
        license="",  # the data's owner decides
    )


@torch.no_grad()
def _illustrate(data: Data, rows: Sequence[Row], held_out: Examples, networks: Mapping[str, Network]) -> Illustration:
    """Return each network's weights, averaged over heads, in the longest held-out row of at most `DRAWN` positions."""
    lengths = [max(len(row.sequence), 0 if row.memory is None else len(row.memory)) for row in rows]
    fitting = [length if length <= DRAWN else -length for length in lengths]
    chosen = fitting.index(max(fitting))
    row = rows[chosen]
    labels, columns = (_shown(each) for each in (row.sequence, row.sequence if row.memory is None else row.memory))
    example = held_out.take(torch.tensor([chosen]))
    panels = [
        Panel(title, labels, network(example).weights[0].mean(0)[:DRAWN, :DRAWN].numpy())
        for title, network in networks.items()
    ]
    return Illustration(f"line {row.line} of {data.path.name}, held out", columns, panels)


def _shown(sequence: Any) -> list[str]:
    """Return the labels of a sequence's drawn positions."""
    return [str(each) for each in (sequence if isinstance(sequence, tuple) else range(len(sequence)))][:DRAWN]
