"""The training loop: rounds of steps, each followed by an evaluation on held-out rows and a checkpoint."""

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
ROUND = range(50, 501)  # bounds of the steps between two evaluations, otherwise an epoch


@dataclass
class Best:
    """The weights with the lowest held-out loss, and the step.

    `looks_since` counts evaluations since then. The fields' names are stored in checkpoints.
    """

    loss: float = math.inf
    step: int = 0
    looks_since: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


class Learner:
    """AdamW with the one-cycle schedule, as for the tasks, in rounds that end with an evaluation on held-out rows.

    `state` has everything that a round depends on, torch's generator included, so a resumed run gives the same result
    as an uninterrupted one.
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
        """Train until steps or patience run out, then load the best weights into the network.

        Args:
            patience: the number of evaluations without a lower loss after which training ends.
            on_progress: called after each step.
            checkpoint: a folder to save the state in and resume from; None for neither.
            run: the parameters of the run, for the checkpoint.

        Returns:
            The loss of each step, including the steps before an interruption.

        Raises:
            CheckpointError: the checkpoint is damaged, or belongs to another run.
            ValueError: the held-out loss is not finite.
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
        """Return everything that the rest of the run depends on."""
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
        """Restore a saved state."""
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
        """Measure the held-out loss; keep the weights if it is the lowest.

        Raises:
            ValueError: the loss is not finite.
        """
        loss, _ = score(self.network, self.held_out)
        if not math.isfinite(loss):
            raise ValueError(f"the held-out loss is {loss}; bring vectors to about the length 1")
        self.best.looks_since += 1
        if loss < self.best.loss:
            self.best = Best(loss, len(self.losses), 0, copy.deepcopy(self.network.state_dict()))
