"""Hyperparameter search: one process that hands training runs, each on nodes of its own, to a Bayesian optimizer."""
