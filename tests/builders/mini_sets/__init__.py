"""How the shipped mini sets are made."""
