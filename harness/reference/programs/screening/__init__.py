"""The program `screening`: billions of candidates, each generated from its number, scored by a model."""
