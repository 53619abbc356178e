"""The program `precision`: one model trained and evaluated in several precisions."""
