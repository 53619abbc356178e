"""Benchmarks with which asv compares commits: small, on one thread, and skipped on commits that lack the API."""

import importlib
from contextlib import suppress

# asv imports this package once per commit and forks that process for each benchmark.
for name in ("numpy", "pandas", "torch"):
    with suppress(ImportError):
        importlib.import_module(name)
