"""The loop: rounds of steps, a look at the held-out part after each, and a state that can be kept and taken up."""

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_export.own_data.checkpoint import load_checkpoint, save_checkpoint
from attention_export.own_data.examples import Examples
from attention_export.own_data.network import Network, score
from attention_export.training import OnProgress, Progress

BATCH, RATE = 32, 3e-3
ROUND = range(50, 501)  # steps between two looks at the held-out part: an epoch, but no fewer and no more than these


@dataclass
class Best:
    """The best weights so far: their held-out loss, the step they are of, and the looks since then without better."""

    loss: float = math.inf
    step: int = 0
    looks_since: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


class Learner:
    """AdamW and the one-cycle schedule, as for the tasks, in rounds: each ends with a look at the held-out part.

    All that a round depends on is in `state`, with torch's generator, so that a run that is taken up again goes on as
    if nothing had been.
    """

    def __init__(self, network: Network, train: Examples, held_out: Examples, steps: int) -> None:
        self.network, self.train, self.held_out, self.steps = network, train, held_out, steps
        self.optimiser = torch.optim.AdamW(network.parameters(), RATE)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, RATE, total_steps=steps)
        self.losses: list[float] = []
        self.best = Best()
        self.seconds = 0.0

    def learn(
        self, patience: int, on_progress: OnProgress, checkpoint: Path | None, run: Mapping[str, Any]
    ) -> list[float]:
        """Learn until the steps or the patience are at an end; leave the network with the best weights.

        Args:
            patience: looks without a better loss, after which it ends.
            on_progress: told of each step.
            checkpoint: a folder to keep the state in, and to go on from; None for neither.
            run: what the run depends on, for the checkpoint.

        Returns:
            The loss of each step, those before an interruption included.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another run.
            ValueError: the loss is no number any more.
        """
        if checkpoint is not None and (state := load_checkpoint(checkpoint, run)) is not None:
            self.restore(state)
        while len(self.losses) < self.steps and self.best.looks_since < patience:
            self._round(on_progress)
            self._evaluate()
            if checkpoint is not None:
                save_checkpoint(checkpoint, run, self.state())
        self.network.load_state_dict(self.best.weights)
        self.network.eval()
        return self.losses

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "losses": self.losses,
            "best": vars(self.best),
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where a run stood."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.losses, self.best, self.seconds = list(state["losses"]), Best(**state["best"]), state["seconds"]
        torch.set_rng_state(state["random"])

    def _round(self, on_progress: OnProgress) -> None:
        began = time.perf_counter() - self.seconds
        self.network.train()
        for chosen in self._draw_batches():
            self.optimiser.zero_grad()
            loss = self.network.loss(self.train.take(chosen))
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            self.losses.append(loss.item())
            self.seconds = time.perf_counter() - began
            on_progress(Progress("own data", len(self.losses), self.steps, self.losses[-1], self.seconds))

    def _draw_batches(self) -> tuple[Tensor, ...]:
        """Draw the batches of a round: the rows shuffled, repeatedly where there are few."""
        epoch = math.ceil(len(self.train) / BATCH)
        count = min(max(epoch, ROUND.start), ROUND[-1], self.steps - len(self.losses))
        shuffled = [torch.randperm(len(self.train)) for _ in range(math.ceil(count * BATCH / len(self.train)))]
        return tuple(torch.cat(shuffled)[: count * BATCH].view(count, BATCH))

    def _evaluate(self) -> None:
        """Measure the held-out loss; keep the weights when it is the lowest."""
        loss, _ = score(self.network, self.held_out)
        if not math.isfinite(loss):
            raise ValueError(f"the held-out loss is {loss}; bring vectors to about the length 1")
        self.best.looks_since += 1
        if loss < self.best.loss:
            self.best = Best(loss, len(self.losses), 0, copy.deepcopy(self.network.state_dict()))
