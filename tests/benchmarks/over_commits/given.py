"""What the benchmarks have in common: how they are sampled, and what they do where a commit lacks an API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

REPEAT = 5


class Sampled:
    """One process takes REPEAT samples of one call each; the rounds of `harness regression` make many of them.

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
