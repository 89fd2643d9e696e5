"""Clients and their devices: profiles, presets, files, traces."""
