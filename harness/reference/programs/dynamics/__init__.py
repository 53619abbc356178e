"""Molecular dynamics and relaxations in batches."""
