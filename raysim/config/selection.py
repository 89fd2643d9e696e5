"""Settings of the selection: which clients take part in a round."""

from typing import Any

from pydantic import Field

from raysim.config.settings import Count, Settings


class SelectionSettings(Settings):
    """Which clients take part in a round."""

    clients_per_round: Count
    """Number of clients whose updates make up a round, at least 1."""
    rule: str = "uniform"
    """`uniform` (any registered client; offline clients do not answer), or among the clients that are online:
    `available` (uniform), `power-of-choice` (the highest last loss of some candidates), `oort` (utility of data and
    speed, with exploration), `round-robin` (longest since their last round) or `by-examples` (in proportion to
    training rows); or `package.module:name`, a function of your own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule, by name, for example `{candidates: 30}` of `power-of-choice`."""
