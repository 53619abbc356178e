"""Make the case of a run on many nodes from the published case of a run on one node, and count operations."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from types import FrameType
from typing import Any

from harness.protocol.case import read_case, read_log
from harness.protocol.events import VERSION, Event
from tests.support.published_results import OLDER, copy_case, unpack_results

CASE = "scaling-local/scaling-weak-per_node_2-4dd3d0a251"


def make_large_run(campaign: Path, nodes: int, ranks_per_node: int = 8) -> Path:
    """Write the case's folder, with a file of telemetry per node, into a campaign, and return the folder.

    Every rank of the large run has a place, the times of steps that the small run has measured, and a GPU of 300 W,
    which the machine of the small run lacks.
    """
    folder = copy_case(OLDER, CASE, campaign)
    case, ranks = read_case(folder), nodes * ranks_per_node
    log = [*read_log(folder, case)]
    case |= {"version": VERSION, "ranks": ranks, "nodes": nodes, "ranks_per_node": ranks_per_node, "sanity": []}
    (folder / "case.json").write_text(json.dumps(case))
    lines = [json.dumps(event) for event in iter_large_log(log, nodes, ranks_per_node)]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "nodes").write_text("".join(f"n{k}\n" for k in range(nodes)))
    (small,) = (unpack_results(OLDER) / "runs" / CASE / "telemetry").iterdir()
    text = small.read_text()
    text += "".join(f"{line}\n" for line in format_power(text, ranks_per_node))
    (folder / "telemetry").mkdir()
    for k in range(nodes):
        content = text.replace('"instance":"vm"', f'"instance":"n{k}"')
        (folder / "telemetry" / f"n{k}-0.jsonl").write_text(content)
    return folder


def format_power(telemetry: str, devices: int) -> Iterator[str]:
    """Yield a line with the power of each device of a node, at the times of its first series."""
    times = json.loads(telemetry.splitlines()[0])["timestamps"]
    for card in range(devices):
        labels = {"__name__": "harness_gpu_power_watts", "card": str(card), "instance": "vm"}
        values = [300.0] * len(times)
        yield json.dumps({"metric": labels, "values": values, "timestamps": times}, separators=(",", ":"))


def iter_large_log(log: list[Event], nodes: int, ranks_per_node: int) -> Iterator[Event]:
    """Yield the events of the large run."""
    ranks = nodes * ranks_per_node
    steps = [event for event in log if event["event"] == "local_step"]
    for event in log:
        changed: dict[str, Any] = dict(event)
        if event["event"] == "start":
            changed["version"] = VERSION
        elif event["event"] == "fact" and event["name"] == "ranks":
            place = event["value"][0]
            changed["value"] = [
                place | {"rank": r, "host": name, "node": name, "local_rank": r % ranks_per_node, "cores": 64}
                for r in range(ranks)
                for name in [f"n{r // ranks_per_node}"]
            ]
        yield changed
        if event["event"] == "compute_only":
            measured = list(islice(cycle(steps), event["step"], event["step"] + ranks))
            yield {
                "event": "rank_steps", "time_s": event["time_s"], "step": event["step"],
                "duration_s": [step["busy_s"] for step in measured], "edges": [step["edges"] for step in measured],
            }  # fmt: skip


def count_operations(work: Callable[[], Any]) -> int:
    """Return the number of instructions of Python's virtual machine that a call executes in the harness."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if "/harness/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count
