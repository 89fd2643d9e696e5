"""The table of tasks."""

from raysim.task.classification import CLASSIFICATION
from raysim.task.task import Task

TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
}
