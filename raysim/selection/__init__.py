"""Who takes part in a round: rules, and what they remember of clients."""
