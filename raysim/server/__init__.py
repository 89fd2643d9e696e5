"""The server side of a round: exact sums of updates, fill rules, server optimizers."""
