"""Fake commands of schedulers, which print recorded output of the real ones."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

PROGRAM_SCRIPT = """\
#!/bin/sh
name=$(basename "$0")
folder=$(dirname "$0")
echo "$name $*" >> "$folder/calls"
n=$(grep -c "^$name " "$folder/calls")
while ! [ -e "$folder/$name.$n" ]; do n=$((n - 1)); done
. "$folder/$name.$n"
"""
# Slurm's commands on a queue in files: `jobs` has a line ID|NAME|STATE|REASON per job or task, and `submissions` has
# a line per accepted sbatch.
SLURM_PROGRAMS = {
    "sbatch": """\
script=$(eval echo "\\${$#}")
count=$(sed -n 's/^#SBATCH --array=1-//p' "$script")
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
limit=$(cat "$folder/limit" 2> /dev/null || echo 1000000)
if [ $(($(wc -l < "$folder/jobs") + ${count:-1})) -gt "$limit" ]; then cat "$folder/refusal" >&2; exit 1; fi
echo "$name ${count:-1}" >> "$folder/submissions"
id=$((100 + $(wc -l < "$folder/submissions")))
if [ -n "$count" ]; then
    for task in $(seq "$count"); do echo "${id}_$task|$name|PENDING|Priority" >> "$folder/jobs"; done
else
    echo "$id|$name|PENDING|Priority" >> "$folder/jobs"
fi
echo "$id"
""",
    "squeue": 'cat "$folder/jobs"\n',
    "sacct": """\
while IFS= read -r row; do
    number=$((${row%%[_|]*} - 100))
    echo "$row|$(sed -n "${number}p" "$folder/submissions" | cut -d' ' -f1)"
done < "$folder/accounting"
""",
    "scontrol": 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1\n',
    "scancel": "exit 0\n",
}


class FakePrograms:
    """Fake programs that give prepared answers in turn and repeat the last one; `calls` lists all calls."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(PROGRAM_SCRIPT)
            (folder / name).chmod(0o755)
            self.set_answers(name, "exit 0")

    def set_answers(self, program: str, *lines: str) -> None:
        for number, line in enumerate(lines, start=1):
            (self.folder / f"{program}.{number}").write_text(f"{line}\n")

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def get_calls(self, program: str) -> list[str]:
        return [call for call in self.calls if call.split()[0] == program]

    @property
    def path(self) -> str:
        """Return a PATH that starts with these programs and the Python of the tests."""
        return f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


class FakeSlurm(FakePrograms):
    """A fake Slurm that accepts jobs up to a limit and starts none; a test may change its files at any time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, *SLURM_PROGRAMS)
        for program, body in SLURM_PROGRAMS.items():
            self.set_answers(program, body)
        for name in ("jobs", "submissions", "accounting"):
            (folder / name).touch()

    def set_limit(self, jobs: int, refusal: str) -> None:
        (self.folder / "limit").write_text(f"{jobs}\n")
        (self.folder / "refusal").write_text(f"{refusal}\n")

    @property
    def jobs(self) -> list[str]:
        return (self.folder / "jobs").read_text().splitlines()

    @property
    def accepted(self) -> list[int]:
        """Return the number of jobs in each accepted submission."""
        return [int(line.split()[-1]) for line in (self.folder / "submissions").read_text().splitlines()]

    def set_accounting(self, *lines: str) -> None:
        """Set the rows `JobID|State`; sacct adds the names of the jobs."""
        (self.folder / "accounting").write_text("".join(f"{line}\n" for line in lines))

    def clear(self) -> None:
        (self.folder / "jobs").write_text("")


def print_file(path: Path, code: int = 0) -> str:
    """Return a shell command that prints a file."""
    return f"cat {shlex.quote(str(path))}; exit {code}"


def print_error(text: str, code: int) -> str:
    """Return a shell command that prints a text on stderr and fails."""
    return f"echo {shlex.quote(text)} >&2; exit {code}"
