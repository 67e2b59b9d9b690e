"""The training tasks of the embedded models: one for each block with parameters."""

from attention_export.tasks import numbers, retrieval, roles
from attention_export.training import Task

TASKS: dict[str, Task] = {task.name: task for task in (retrieval.TASK, roles.TASK, numbers.TASK)}
