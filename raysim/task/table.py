"""The table of tasks."""

from raysim.task.classification import CLASSIFICATION
from raysim.task.numbers import MULTILABEL, REGRESSION
from raysim.task.positions import NEXT_TOKEN, SEGMENTATION, TOKEN_CLASSIFICATION
from raysim.task.task import Task

TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
    "multilabel": MULTILABEL,
    "regression": REGRESSION,
    "next-token": NEXT_TOKEN,
    "token-classification": TOKEN_CLASSIFICATION,
    "segmentation": SEGMENTATION,
}
"""Define a task: a loss, metrics that are sums over rows, and optional parts that some methods need."""
