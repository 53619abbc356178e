"""Run the code of other implementations: find their checkout, start their processes, and adapt their programs."""
