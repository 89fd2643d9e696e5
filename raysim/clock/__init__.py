"""Simulated time: seconds and joules of each client, and when a round ends."""
