"""The progress of a training in the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attention_export.training import OnProgress
from attention_export.training import Progress as Step


@contextmanager
def training_bars(console: Console) -> Iterator[OnProgress]:
    """Show a bar for each run of a training, with the loss and the time left, while the block lasts."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    shown: dict[str, TaskID] = {}
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:

        def on_progress(step: Step) -> None:
            if step.run not in shown:
                shown[step.run] = bars.add_task(step.run, total=step.steps, loss=step.loss)
            bars.update(shown[step.run], completed=step.step, loss=step.loss)

        yield on_progress
