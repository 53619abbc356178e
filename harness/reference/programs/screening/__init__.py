"""Screening: candidates by the billion, each known by its number alone, with their neighbour lists."""
