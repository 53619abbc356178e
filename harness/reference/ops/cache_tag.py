"""A tag that tells torch's cache of compiled code apart by the operators of this package.

torch finds compiled code, including the backward pass, by the graph of the forward pass, in which an operator is only a
name: after a change of its derivative, it would use the old code.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def hash_sources(folder: Path) -> str:
    """Return a hash over the Python files in a folder and below."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


@functools.cache
def tag_compiled_code() -> None:
    """Let torch use only compiled code that belongs to the present operators."""
    torch.compiler.config.cache_key_tag += hash_sources(FOLDER)
