"""Prefetched batches are returned in order, with their errors, and prefetching stops on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from harness.reference.storage.prefetch import Prefetch
from harness.reference.storage.samples import PreloadedSamples
from harness.reference.storage.schema import Block, Column


def list_prefetch_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "prefetch"]


@pytest.fixture(autouse=True)
def _check_that_no_thread_is_left() -> Iterator[None]:
    yield
    assert not list_prefetch_threads()


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_batches_are_returned_in_order(depth: int) -> None:
    with Prefetch(lambda k: k * k, range(20), depth=depth) as prefetch:
        assert list(prefetch) == [k * k for k in range(20)]
        assert prefetch.threaded == (depth > 0)
        assert list(prefetch) == []


def test_prefetch_depth_is_respected() -> None:
    fetched: list[int] = []
    with Prefetch(fetched.append, range(20), depth=3) as prefetch:
        next(prefetch)
        deadline = time.monotonic() + 5
        while len(fetched) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert fetched == [0, 1, 2, 3, 4]  # one is taken, three are queued, and one waits for the queue


@pytest.mark.parametrize("depth", [0, 2])
def test_fetch_errors_are_raised_at_their_batch(depth: int) -> None:
    with Prefetch(lambda k: 12 // (3 - k), range(9), depth=depth) as prefetch:
        assert [next(prefetch) for _ in range(3)] == [4, 6, 12]
        with pytest.raises(ZeroDivisionError):
            next(prefetch)


def test_iterator_errors_are_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    with Prefetch(lambda k: k, items()) as prefetch:
        assert next(prefetch) == 1
        with pytest.raises(KeyError, match="no more"):
            next(prefetch)


def test_prefetch_stops_early() -> None:
    started = time.monotonic()
    with Prefetch(lambda k: k, iter(int, 1), depth=2) as prefetch:
        next(prefetch)
    assert time.monotonic() - started < 20


def test_waits_are_measured() -> None:
    with Prefetch(lambda k: time.sleep(0.1), range(5), depth=1) as prefetch:
        list(prefetch)
    assert 0.25 < prefetch.waited_s < 20
    fetched = []

    def fetch(k: int) -> int:
        time.sleep(0.2)
        fetched.append(k)
        return k

    with Prefetch(fetch, range(5), depth=6) as prefetch:
        deadline = time.monotonic() + 60
        while len(fetched) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(prefetch) == [0, 1, 2, 3, 4]
    assert prefetch.waited_s < 0.2


def test_prefetch_without_mpi_threads_reports_the_reason() -> None:
    samples = PreloadedSamples.from_block(Block(4, {"n": Column(np.arange(4), 1)}))
    samples.thread_safe = False
    with Prefetch(samples.get, [[0], [3]], samples=samples) as prefetch:
        assert not prefetch.threaded
        assert "THREAD_MULTIPLE" in prefetch.reason
        assert [int(batch[0]["n"][0]) for batch in prefetch] == [0, 3]
