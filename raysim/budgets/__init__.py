"""Budgets: how much of the model each client can afford."""
