"""A finished run timed anew from its records: on other devices, with another deadline, without training."""
