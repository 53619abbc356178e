"""The program `scaling`: timed steps of data-parallel training, for weak and strong scaling."""
