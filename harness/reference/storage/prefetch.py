"""Batches that a thread fetches in advance while the consumer computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from harness.reference.storage.samples import Samples

Request = TypeVar("Request")
Result = TypeVar("Result")


class Prefetch(Generic[Request, Result]):
    """An iterator over fetch(request) for each request, in order, that fetches up to `depth` results in advance.

    An exception of fetch or requests is raised in place of the result.

        with Prefetch(samples.get, batches, depth=2, samples=samples) as prefetched:
            for records in prefetched: ...

    Attributes:
        threaded: Whether a thread fetches in advance. It is False if depth is 0 or the samples cannot be read
            concurrently (MPI without THREAD_MULTIPLE); each result is then fetched when the consumer asks for it.
        reason: Why `threaded` is False, or "".
        waited_s: Seconds for which the consumer has waited.
    """

    def __init__(
        self,
        fetch: Callable[[Request], Result],
        requests: Iterable[Request],
        *,
        depth: int = 2,
        samples: Samples | None = None,
    ) -> None:
        self.waited_s = 0.0
        self.reason = ""
        if depth < 1:
            self.reason = "a depth of 0"
        elif samples is not None and not samples.thread_safe:
            self.reason = "MPI was started without THREAD_MULTIPLE"
        self.threaded = not self.reason
        self._fetch = fetch
        self._requests = iter(requests)
        self._stopped = threading.Event()
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(max(1, depth))
        self._thread = threading.Thread(target=self._fetch_all, name="prefetch", daemon=True)
        if self.threaded:
            self._thread.start()

    def _fetch_all(self) -> None:
        try:
            for request in self._requests:
                if self._stopped.is_set() or not self._enqueue(("batch", self._fetch(request))):
                    return
        except BaseException as error:
            self._enqueue(("error", error))
        else:
            self._enqueue(("end", None))

    def _enqueue(self, item: tuple[str, Any]) -> bool:
        """Queue an item; return False if the consumer has stopped."""
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if self._stopped.is_set():
            raise StopIteration
        started = time.perf_counter()
        try:
            if not self.threaded:
                return self._fetch(next(self._requests))
            kind, value = self._ready.get()
        finally:
            self.waited_s += time.perf_counter() - started
        if kind == "batch":
            return value
        self.close()
        raise value if kind == "error" else StopIteration

    def close(self) -> None:
        """Stop the thread; the fetch in progress is finished, and its result is discarded."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Prefetch[Request, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
