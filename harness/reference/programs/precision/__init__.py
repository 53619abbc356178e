"""One model in several precisions, side by side."""
