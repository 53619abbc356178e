"""Configure torch.compile: with a cache that knows the operators of this package, and into few libraries.

torch finds compiled code, including the backward pass, by the graph of the forward pass, in which an operator is only a
name: after a change of its derivative, it would use the old code.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
# The beginning of the versions of torch with whose internals the libraries of several kernels have been tested.
TESTED_VERSION = "2.13."


def hash_sources(folder: Path) -> str:
    """Return a hash over the Python files in a folder and below."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


@functools.cache
def configure_compiler() -> None:
    """Let torch use only compiled code of the present operators, and build few libraries, in the whole process."""
    torch.compiler.config.cache_key_tag += hash_sources(FOLDER)
    # there is no public interface for this, so that other versions of torch build a library for each kernel
    if torch.__version__.startswith(TESTED_VERSION):
        from harness.reference.ops.kernel_libraries import join_kernels

        join_kernels()
