"""Builders of the shipped sets of the downstream tasks."""
