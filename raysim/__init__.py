"""Federated learning on heterogeneous devices with pruned submodels, simulated on Ray."""
