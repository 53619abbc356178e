"""The preflight on one rank and on two: each item has a result, whatever happens to the others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from harness.protocol.errors import UsageError
from harness.protocol.events import CaseLog, read_last_events
from harness.protocol.registry import parse_parameters
from harness.reference.distributed.launch import LostRank, RankInfo
from harness.reference.errors import InputError
from harness.reference.programs.preflight import coordination
from harness.reference.programs.preflight.check import Outcome, make_outcome, make_unchecked, merge
from harness.reference.programs.preflight.checks import environment, packages
from harness.reference.programs.preflight.coordination import Follower, Leader, Task, find_free_port
from harness.reference.programs.preflight.items import Item
from harness.reference.programs.preflight.program import Preflight
from tests.conftest import ROOT
from tests.reference.programs.preflight.contexts import make_context
from tests.support.mpi import environment_without_launcher, find_mpiexec
from tests.support.programs import run_program

CHEAP = ["environment", "binding", "locks"]


def read_items(folder: Path) -> dict[str, dict[str, Any]]:
    events = read_last_events(folder / "events.jsonl")
    return {event["item"]: event for event in events if event["event"] == "preflight_item"}


def test_failed_check_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "check", lambda context: os._exit(9))
    with pytest.raises(InputError, match=r"^1 item failed: environment; the page on the preflight has advice$"):
        run_program("preflight", {"only": CHEAP, "device": "cpu"}, tmp_path)
    items = read_items(tmp_path)
    assert list(items) == ["ranks", *CHEAP]
    assert items["environment"]["verdict"] == "failed"
    assert "exit code 9" in items["environment"]["observed"]
    assert items["locks"]["verdict"] == items["binding"]["verdict"] == "ok"


def test_items_that_need_broken_packages_are_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "check", lambda context: make_outcome("a", "b", ["torch cannot be imported"], "c"))
    with pytest.raises(InputError, match=r"^1 item failed: packages"):
        run_program("preflight", {"only": ["packages", "devices", "locks"], "device": "cpu"}, tmp_path)
    items = read_items(tmp_path)
    assert items["devices"]["verdict"] == "not checked"
    assert items["devices"]["advice"] == "Correct the item `packages` first."
    assert items["locks"]["verdict"] == "ok"


def test_two_ranks_check_together(tmp_path: Path) -> None:
    parameters = {"only": [*CHEAP, "distributed", "mpi"], "device": "cpu"}
    (tmp_path / "case.json").write_text(
        json.dumps({"id": "1", "program": "preflight", "parameters": parameters, "ranks": 2})
    )
    variables = environment_without_launcher() | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
    }  # fmt: skip
    command = [find_mpiexec(), "-n", "2", sys.executable, "-m", "harness.reference", str(tmp_path)]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    items = read_items(tmp_path)
    assert items["ranks"]["observed"] == "2 of 2 ranks connected to rank 0"
    assert "40 of 40 additions by 2 ranks" in items["locks"]["observed"]
    assert "sums over 2 ranks by gloo are right" in items["distributed"]["observed"]
    assert items["mpi"]["verdict"] == "ok", items["mpi"]["observed"]
    assert "share core" in items["binding"]["observed"]


def test_rank_that_does_not_connect_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = find_free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(coordination, "get_port", lambda: port)
    answers: list[Task] = []

    def follow() -> None:
        follower = Follower(RankInfo(2, 3, 2), "case", 20.0)
        answers.append(follower.receive())
        follower.answer(None)

    thread = threading.Thread(target=follow)
    thread.start()
    leader = Leader(RankInfo(0, 3, 0), "case", 3.0)
    assert leader.missing_ranks == [1]
    leader.send(Task("locks", 1))
    assert leader.gather(1.0) == {2: None}
    thread.join()
    assert answers == [Task("locks", 1)]


def test_lost_rank_is_a_failure_of_one_item_and_an_obstacle_for_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordination, "get_port", find_free_port)
    leader = Leader(RankInfo(0, 2, 0), "case", 0.0)
    parent_end, child_end = Pipe()
    leader.connections[1] = parent_end
    child_end.close()
    leader.send(Task("locks", 1))
    outcomes = leader.gather(0.0)
    assert outcomes[1] is not None
    assert outcomes[1].finding.observed == "the rank no longer answers"
    assert leader.gather(0.0) == {}
    preflight = Preflight(make_context(tmp_path, 0, 2), CaseLog(tmp_path / "events.jsonl", "preflight"), leader)
    obstacle = preflight.find_obstacle(Item("locks", needs_all=True))
    assert obstacle is not None
    assert obstacle.finding.verdict == "not checked"
    assert obstacle.finding.observed == "not every rank answers; missing: 1"
    assert preflight.find_obstacle(Item("disk")) is None


def test_follower_without_rank_0_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(coordination, "get_port", lambda: server.getsockname()[1])
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        follower = Follower(RankInfo(1, 2, 1), "case")
        server.accept()[0].close()
    with suppress(LostRank):  # the first message may still be sent
        follower.answer(None)
    time.sleep(0.1)
    with pytest.raises(LostRank, match="rank 0 has ended"):
        follower.answer(None)


def test_verdict_of_all_ranks_is_the_worst(tmp_path: Path) -> None:
    good, bad = make_outcome("a", "fine"), make_outcome("a", "fine", ["broken"], "repair it")
    unknown = make_unchecked("a", "no reason", "wait")
    outcomes: dict[int, Outcome] = {0: good, 1: bad, 2: unknown, 3: bad}
    finding = merge(make_context(tmp_path), outcomes)
    assert (finding.verdict, finding.observed) == ("failed", "rank 1 (and 1 other rank): broken")
    assert merge(make_context(tmp_path), {0: good, 2: unknown}).verdict == "not checked"


def test_unknown_item_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"only\.0 is 'kernel' \(did you mean 'kernels'"):
        parse_parameters("preflight", {"only": ["kernel"]})
