"""The sampling of all benchmarks, and look-up of objects that have other names or are missing in older commits."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Samples of one process: minimum number, maximum number, and seconds. Other processes slow a machine down for a second
# at a time, so a process samples for longer than that.
REPEAT = (5, 200, 1.0)


class Benchmark:
    """The base class of benchmarks: a process takes samples of one call each, and `harness regression` runs many.

    asv calls `setup` before each sample, so expensive data are computed once per process with functools.cache.
    """

    rounds = 1
    repeat = REPEAT
    number = 1
    warmup_time = 0.0


@contextmanager
def skip_if_missing() -> Iterator[None]:
    """Turn an ImportError in `setup` into NotImplementedError, for which asv skips a benchmark on a commit."""
    try:
        yield
    except ImportError as error:
        raise NotImplementedError(str(error)) from None


def find_first(*names: str) -> Any:
    """Return the first of these objects or modules that this commit has: `package.module.attribute`, newest name first.

    Raises ImportError if the commit has none of them.
    """
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            parent = importlib.import_module(module)
            return getattr(parent, attribute) if hasattr(parent, attribute) else importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(f"none of {', '.join(names)}")
