"""Benchmarks over commits, for asv: small, on one thread, and silent about commits that lack what they measure."""

import importlib
from contextlib import suppress

# Once for all benchmarks of a commit: each is forked from the process that imports this.
for name in ("numpy", "pandas", "torch"):
    with suppress(ImportError):
        importlib.import_module(name)
