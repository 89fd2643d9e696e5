"""A run without its surroundings: scenario, state, rounds, records, checkpoints."""
