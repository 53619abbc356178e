"""The program `data_parallel`: timed steps of data-parallel training, for studies of weak and strong scaling."""
