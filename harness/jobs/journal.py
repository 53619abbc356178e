"""The append-only record of a campaign: which case was submitted as which job, and how it ended."""

from __future__ import annotations

from pathlib import Path

from harness import events

FILE_NAME = "journal.jsonl"


class Journal:
    """Lines `submitted` (case, job) and `ended` (case, exit_code); reading replays them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = events.EventLog(folder / FILE_NAME)

    def submitted(self, case: str, job: str) -> None:
        """Record that a case is on its way."""
        self._log.write("submitted", case=case, job=job)

    def ended(self, case: str, exit_code: int | None) -> None:
        """Record how a case's job ended; None: it vanished without an exit code."""
        self._log.write("ended", case=case, exit_code=exit_code)

    def open_jobs(self) -> dict[str, str]:
        """Case id -> job id of everything submitted and not known to have ended."""
        jobs: dict[str, str] = {}
        for line in events.read(self._log.path):
            if line["event"] == "submitted":
                jobs[line["case"]] = line["job"]
            elif line["event"] == "ended":
                jobs.pop(line["case"], None)
        return jobs
