"""Settings of evaluation: when and on which rows models are scored."""

from typing import Annotated

from pydantic import Field

from raysim.config.settings import Count, FiniteFloat, Settings, Share


class EvaluationSettings(Settings):
    """When, and on which rows, models are scored."""

    every: Count = 1
    """Rounds between two scores of the global model, at least 1; the last round is always scored."""
    max_examples: Count | None = None
    """Largest number of test rows on which the global model is scored; null: the full test set."""
    client_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of a cohort whose submodels are scored on the clients' own held-out rows, in [0, 1]: as each client has
    trained its own, before they are aggregated."""
    widths: list[Share] | None = None
    """Widths, in (0, 1], to which the global model is cut by the method's own masks and scored at each evaluation;
    null: those that clients can train, at the last evaluation only; `[]`: none."""
    targets: list[FiniteFloat] = Field(default_factory=list)
    """Values of the primary metric on the test rows, accuracies in (0, 1] unless `task` names another: the summary
    reports in which round each was first reached, and after how many simulated seconds, bytes, FLOPs and joules. They
    end nothing and choose nothing."""
