"""Weak and strong scaling: timed steps of data-parallel training."""
