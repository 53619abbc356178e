"""Builders of the shipped mini sets."""
