"""Coupled channel groups, their significance, masks, and the submodels they leave."""
