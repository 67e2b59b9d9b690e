"""Training of the tasks, and the bars on held-out figures below which a model is not exported.

Training is seeded and runs on one thread: one machine gives the same bytes each time.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from attention_proto.attention.v1.attention_pb2 import Training
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_export.model import Model

LICENSE = "Apache-2.0"  # of the weights that ship with the project
Example = tuple[Tensor, ...]  # one example; or a batch, each tensor with one more dimension in front


@dataclass(frozen=True)
class Progress:
    """The progress of a training run.

    Attributes:
        run: the name of the trained network: the model, or a comparison.
        step, steps: optimiser steps done and in all.
        loss: the loss of this step's batch.
        seconds: the time since the start of the run.
    """

    run: str
    step: int
    steps: int
    loss: float
    seconds: float


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Panel:
    """One matrix of attention weights to draw: a title, R row labels and weights (R, S)."""

    title: str
    rows: Sequence[str]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Illustration:
    """One text, with the weights of different blocks over it.

    Attributes:
        text: the example, readable.
        columns: the S tokens at the key positions.
        panels: the compared networks, from before training to after.
    """

    text: str
    columns: Sequence[str]
    panels: Sequence[Panel]


@dataclass(frozen=True)
class TrainingRun:
    """The result of learning a task.

    Attributes:
        model: the model, without the record of its training.
        losses: the training loss of each step.
        figures: measurements on held-out examples, by name.
        train_examples, held_out_examples: the counts of examples.
        illustration: weights before and after.
    """

    model: Model
    losses: Sequence[float]
    figures: Mapping[str, float]
    train_examples: int
    held_out_examples: int
    illustration: Illustration


@dataclass(frozen=True)
class TrainedModel:
    """A model that has learned its task, with the data for its picture.

    Attributes:
        model: the model; its `training` has seed, steps and held-out figures.
        losses: the training loss of each step.
        illustration: weights before and after.
    """

    model: Model
    losses: Sequence[float]
    illustration: Illustration

    @property
    def training(self) -> Training:
        """The record of the training."""
        assert self.model.training is not None
        return self.model.training


@dataclass(frozen=True)
class Bar:
    """The range of a figure in which a model is exported."""

    at_least: float = -math.inf
    at_most: float = math.inf

    def __str__(self) -> str:
        """Return the range in words, such as "at least 0.9"."""
        return f"at least {self.at_least:g}" if self.at_least > -math.inf else f"at most {self.at_most:g}"

    def holds(self, figure: float) -> bool:
        """Tell whether a figure clears the bar; NaN never does."""
        return self.at_least <= figure <= self.at_most


class BelowBar(ValueError):
    """A figure of a trained model is below its bar."""


@dataclass(frozen=True)
class Task:
    """A training task and its model.

    Attributes:
        name: the task's name.
        model: the served model's name.
        steps: the default number of optimiser steps, enough to reach the bars.
        bars: figure -> its bar.
        learn: (seed, steps, on progress) -> the training run; draws from torch's generator.
    """

    name: str
    model: str
    steps: int
    bars: Mapping[str, Bar]
    learn: Callable[[int, int, OnProgress], TrainingRun]

    def train(self, seed: int, steps: int, on_progress: OnProgress) -> TrainedModel:
        """Train the model: on one machine, the same seed and steps give the same bytes.

        The bars are not checked here; see `check_bars`.
        """
        began = time.perf_counter()
        with reproducible(seed):
            learned = self.learn(seed, steps, on_progress)
        training = Training(
            task=self.name,
            seed=seed,
            train_examples=learned.train_examples,
            held_out_examples=learned.held_out_examples,
            steps=steps,
            parameters=_parameters(learned.model),
            figures=learned.figures,
            seconds=time.perf_counter() - began,
        )
        return TrainedModel(replace(learned.model, training=training), learned.losses, learned.illustration)


def check_bars(figures: Mapping[str, float], bars: Mapping[str, Bar]) -> None:
    """Check figures against bars.

    Raises:
        BelowBar: a figure misses its bar or is missing; the message names each.
    """
    short = [
        f"{name} is {figures[name]:.4g} and must be {bar}" if name in figures else f"{name} was not measured"
        for name, bar in bars.items()
        if not bar.holds(figures.get(name, math.nan))
    ]
    if short:
        raise BelowBar("the model falls short of its bars: " + "; ".join(short))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and compute on one thread, where sums have one order; restore torch's state afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def stack_by_shape(examples: Iterable[Example]) -> list[Example]:
    """Group examples of equal shapes into batches, so that padding and masks are not needed."""
    groups: dict[tuple[torch.Size, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(tuple(tensor.shape for tensor in example), []).append(example)
    return [tuple(torch.stack(tensors) for tensors in zip(*group, strict=True)) for group in groups.values()]


class Batches:
    """A sampler of batches of equally shaped examples, in proportion to the examples' shares (by default equal)."""

    def __init__(self, examples: Sequence[Example], size: int, shares: Sequence[float] | None = None) -> None:
        self.size = size
        weighed = zip(examples, shares or [1.0] * len(examples), strict=True)
        self.groups = stack_by_shape((*example, torch.tensor(share)) for example, share in weighed)
        self.shares = torch.stack([group[-1].sum() for group in self.groups])

    def draw(self) -> Example:
        """Return a random batch: an example's tensors with B in front."""
        *tensors, shares = self.groups[int(self.shares.multinomial(1))]
        chosen = shares.multinomial(self.size, replacement=True)  # (B,)
        return tuple(tensor[chosen] for tensor in tensors)


def fit(
    network: nn.Module, loss: Callable[[], Tensor], *, steps: int, rate: float, run: str, on_progress: OnProgress
) -> list[float]:
    """Train a network with AdamW and the one-cycle schedule (Smith & Topin, 2018).

    Args:
        network: trained in place, and left in evaluation mode.
        loss: draws a batch and returns its loss, a scalar with gradients.
        steps: batches.
        rate: the highest learning rate.
        run: name of the run, for `on_progress`.
        on_progress: called after each step, in this thread.

    Returns:
        The loss of each step.
    """
    began = time.perf_counter()
    optimiser = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    losses: list[float] = []
    network.train()
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        schedule.step()
        losses.append(value.item())
        on_progress(Progress(run, step, steps, losses[-1], time.perf_counter() - began))
    network.eval()
    return losses


def _parameters(model: Model) -> int:
    """Count the learned parameters of front, block and head."""
    fronts = [model.text.front, model.text.memory_front] if model.text else []
    modules = nn.ModuleList(module for module in (*fronts, model.block, model.head) if module)
    return sum(parameter.numel() for parameter in modules.parameters() if parameter.requires_grad)
