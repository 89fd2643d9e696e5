"""The clients and their devices: profiles, presets, files, traces."""
