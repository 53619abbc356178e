"""The parts of DeepHyper in use, imported without MPI.

DeepHyper imports mpi4py without starting MPI. ASE, in the same process, would then take MPI for started, and end the
process.
"""

from __future__ import annotations

import sys

MPI = "mpi4py"
_is_hidden = MPI not in sys.modules
if _is_hidden:
    sys.modules[MPI] = None  # type: ignore[assignment]
try:
    from deephyper.hpo import CBO, HpProblem  # type: ignore[import-untyped]
finally:
    if _is_hidden:
        del sys.modules[MPI]

__all__ = ["CBO", "HpProblem"]
