"""How the shipped sets of the downstream tasks are made."""
