"""Named methods: one row each, on shared verbs."""
