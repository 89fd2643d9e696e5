"""Asynchronous rounds against an event loop written the slow way."""
