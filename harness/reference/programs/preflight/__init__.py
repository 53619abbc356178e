"""Checks of a machine before the first campaign, each in a separate process."""
