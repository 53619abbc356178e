"""Free ports of this machine."""

from __future__ import annotations

import random
import socket

# These are below the ports of jobs, and those that the system uses for outgoing connections.
FIRST, LAST = 10_000, 21_000


def find_free_ports(count: int = 1) -> int:
    """Return the first of `count` consecutive free ports."""
    while True:
        lowest = random.randrange(FIRST, LAST - count)
        try:
            for port in range(lowest, lowest + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return lowest
