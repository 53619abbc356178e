"""What the benchmarks have in common: how they are sampled, and what they do where a commit lacks an API."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Samples of one process: so many at least, so many at most, and for so many seconds. A busy neighbour slows a machine
# down for a second at a time, and the least of a process is to be of a moment in which it did not.
REPEAT = (5, 200, 1.0)


class Sampled:
    """One process takes samples of one call each, as REPEAT says; the rounds of `harness regression` make many of them.

    asv runs setup again before each sample, so that what is dear in it is made once a process, under functools.cache.
    """

    rounds = 1
    repeat = REPEAT
    number = 1
    warmup_time = 0.0


@contextmanager
def as_far_as_it_exists() -> Iterator[None]:
    """asv leaves out a benchmark whose setup raises NotImplementedError: here, on commits before a module."""
    try:
        yield
    except ImportError as error:
        raise NotImplementedError(str(error)) from None


def find(*names: str) -> Any:
    """Return the first of these objects or modules that this commit has: `package.module.attribute`, newest name first.

    Raises ImportError where it has none of them.
    """
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            parent = importlib.import_module(module)
            return getattr(parent, attribute) if hasattr(parent, attribute) else importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(f"none of {', '.join(names)}")
