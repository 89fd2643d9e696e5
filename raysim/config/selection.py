"""Settings of the selection: which clients take part in a round."""

from typing import Any

from pydantic import Field

from raysim.config.settings import Count, Settings


class SelectionSettings(Settings):
    """Who takes part in a round."""

    clients_per_round: Count
    """Clients whose updates a round is made of, at least 1."""
    rule: str = "uniform"
    """`uniform` (any registered client; who is offline does not answer), or among those that can be reached:
    `available` (uniform), `power-of-choice` (the highest last loss of some candidates), `oort` (utility of data and
    speed, with exploration), `round-robin` (longest not asked) or `by-examples` (in proportion to training rows); or
    `package.module:name`, a function of your own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule, by name, for example `{candidates: 30}` of `power-of-choice`."""
