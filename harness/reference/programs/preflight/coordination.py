"""The connection of all ranks to rank 0, which sends them the items to check and gathers the outcomes.

It uses neither torch nor MPI, since these are under test, and no files, since a shared file system may show them late.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection

import msgspec

from harness.protocol.programs.preflight import ItemName
from harness.reference.distributed.launch import LostRank, RankInfo
from harness.reference.errors import InputError
from harness.reference.programs.preflight.check import Outcome
from harness.reference.programs.preflight.isolation import make_failure

CONNECT_S = 60.0
GRACE_S = 30.0  # the time for an answer after the time limit of an item
MAX_BYTES = 1 << 24
LOST, LOST_ADVICE = "the rank no longer answers", "Check whether its node has failed."


class Hello(msgspec.Struct):
    """The first message of a rank."""

    rank: int
    case: str


class Task(msgspec.Struct):
    """An item to check, or None after the last one."""

    item: ItemName | None
    port: int = 0


class Leader:
    """Rank 0, to which the other ranks are connected.

    Args:
        rank_info: The rank of this process.
        case: The path of the case's folder, by which ranks of other runs are recognized.
        timeout_s: The longest wait until all ranks have connected.
    """

    def __init__(self, rank_info: RankInfo, case: str, timeout_s: float = CONNECT_S) -> None:
        self.connections: dict[int, Connection] = {}
        self.size = rank_info.size
        self._lost: list[int] = []  # since the last outcomes were gathered
        if rank_info.size == 1:
            return
        deadline = time.monotonic() + timeout_s
        with socket.create_server(("", get_port()), backlog=rank_info.size) as server:
            while len(self.connections) < rank_info.size - 1 and time.monotonic() < deadline:
                server.settimeout(max(0.1, deadline - time.monotonic()))
                with suppress(TimeoutError):
                    self._accept(server, case)

    @property
    def missing_ranks(self) -> list[int]:
        """The ranks that have not connected or no longer answer."""
        return [rank for rank in range(1, self.size) if rank not in self.connections]

    def send(self, task: Task) -> None:
        """Send a task to all ranks; the outcome of a rank that has ended is a failure."""
        for rank, connection in list(self.connections.items()):
            try:
                connection.send_bytes(msgspec.json.encode(task))
            except OSError:
                del self.connections[rank]
                self._lost.append(rank)

    def gather(self, time_limit_s: float) -> dict[int, Outcome | None]:
        """Return the outcome of each other rank, or None if the item was not for that rank."""
        deadline = time.monotonic() + time_limit_s + GRACE_S
        outcomes: dict[int, Outcome | None] = {rank: make_failure(LOST, LOST_ADVICE) for rank in self._lost}
        self._lost.clear()
        for rank, connection in list(self.connections.items()):
            try:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    raise EOFError
                outcomes[rank] = msgspec.json.decode(connection.recv_bytes(MAX_BYTES), type=Outcome | None)
            except (OSError, EOFError, msgspec.MsgspecError):
                del self.connections[rank]
                outcomes[rank] = make_failure(LOST, LOST_ADVICE)
        return outcomes

    def _accept(self, server: socket.socket, case: str) -> None:
        """Accept a connection; one that is not from a rank of this case is closed."""
        connection = Connection(server.accept()[0].detach())
        with suppress(OSError, EOFError, msgspec.MsgspecError):
            if connection.poll(5.0):
                hello = msgspec.json.decode(connection.recv_bytes(MAX_BYTES), type=Hello)
                if hello.case == case and 0 < hello.rank < self.size and hello.rank not in self.connections:
                    self.connections[hello.rank] = connection
                    return
        connection.close()


class Follower:
    """A rank other than 0, connected to rank 0; raises LostRank if rank 0 cannot be reached or has ended."""

    def __init__(self, rank_info: RankInfo, case: str, timeout_s: float = CONNECT_S) -> None:
        address = (os.environ.get("MASTER_ADDR", "127.0.0.1"), get_port())
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                handle = socket.create_connection(address, timeout=5.0)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LostRank(f"rank 0 does not listen at {address[0]}:{address[1]} ({error})") from None
                time.sleep(0.2)
        handle.settimeout(None)
        self._connection = Connection(handle.detach())
        self._send(Hello(rank_info.rank, case))

    def receive(self) -> Task:
        """Wait for the next task of rank 0 and return it; raise LostRank if rank 0 has ended."""
        try:
            return msgspec.json.decode(self._connection.recv_bytes(MAX_BYTES), type=Task)
        except (OSError, EOFError):
            raise LostRank("rank 0 has ended") from None

    def answer(self, outcome: Outcome | None) -> None:
        """Send the outcome of the task."""
        self._send(outcome)

    def _send(self, message: Hello | Outcome | None) -> None:
        try:
            self._connection.send_bytes(msgspec.json.encode(message))
        except OSError:
            raise LostRank("rank 0 has ended") from None


def get_port(environment: Mapping[str, str] = os.environ) -> int:
    """Return the port of rank 0, which the job script sets."""
    port = environment.get("MASTER_PORT", "")
    if not port.isdecimal():
        raise InputError("several ranks need MASTER_PORT, a free port of rank 0's node, in the environment")
    return int(port)


def find_free_port() -> int:
    """Return a port of this node that no program uses at this moment."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
