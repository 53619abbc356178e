"""What is used of DeepHyper, imported without MPI.

Left to itself it imports mpi4py and does not start MPI, at which ASE, in the same process, takes it for running and
ends the process.
"""

from __future__ import annotations

import sys

UNSTARTED = "mpi4py"
_hidden = UNSTARTED not in sys.modules
if _hidden:
    sys.modules[UNSTARTED] = None  # type: ignore[assignment]
try:
    from deephyper.hpo import CBO, HpProblem  # type: ignore[import-untyped]
finally:
    if _hidden:
        del sys.modules[UNSTARTED]

__all__ = ["CBO", "HpProblem"]
