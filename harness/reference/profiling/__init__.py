"""Time, memory and arithmetic of a call."""
