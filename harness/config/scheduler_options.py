"""The options of sbatch and qsub that may be directives of a job script, and the parsing of directives."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from harness.protocol.errors import did_you_mean

Argument = Literal["required", "optional", "none"]

# Long options of sbatch (Slurm 17.11 to 25.05) by the argument that they take.
SBATCH_LONG = """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude export export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type mail-user
    mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks ntasks-per-core
    ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile qos
    reservation segment signal sockets-per-node switches thread-spec threads-per-core time time-min tmp tres-bind
    tres-per-task uid wait-all-nodes wckey wrap
"""
SBATCH_OPTIONAL = "exclusive get-user-env nice no-kill oom-kill-step oversubscribe propagate"
SBATCH_FLAGS = """
    consolidate-segments contiguous hold ignore-pbs no-requeue overcommit parsable quiet reboot requeue spread-job
    stepmgr test-only use-min-nodes verbose wait
"""
SBATCH_SHORT: dict[str, str] = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint", "c": "cpus-per-task",
    "D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input",
    "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes",
    "n": "ntasks", "O": "overcommit", "o": "output", "p": "partition", "Q": "quiet", "q": "qos", "S": "core-spec",
    "s": "oversubscribe", "t": "time", "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
# Options of qsub of OpenPBS, which are single letters.
QSUB_REQUIRED, QSUB_FLAGS = "aACcejJklmMNopPqrRSuvW", "fhVz"
# Options of one scheduler that correspond to options of the other.
EQUIVALENTS = {"account": "-A", "partition": "-q", "qos": "-q", "time": "-l walltime", "job-name": "-N", "gres": "-l"}


@dataclass(frozen=True)
class Directive:
    """An option in a directive: its full name with dashes, such as `--account` or `-l`, and its value."""

    name: str
    value: str = ""


class DirectiveError(ValueError):
    """A directive that the scheduler would refuse or ignore; the message says why."""


def parse_directive(text: str, scheduler: str) -> list[Directive]:
    """Return the options in one directive line, with the long names of sbatch's options.

    Raises:
        DirectiveError: The scheduler has no such option, or the option lacks its value or takes none.
    """
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise DirectiveError(f"{str(error).lower()} in {text!r}") from None
    arguments = SBATCH_ARGUMENTS if scheduler == "slurm" else QSUB_ARGUMENTS
    return list(_parse_words(iter(words), arguments, "sbatch" if scheduler == "slurm" else "qsub"))


def _parse_words(words: Iterator[str], arguments: Mapping[str, Argument], command: str) -> Iterator[Directive]:
    while (word := next(words, None)) is not None:
        if word.startswith("--") and command == "sbatch":
            option, has_value, value = word.partition("=")
            option = _complete(option, arguments)
        elif word.startswith("-") and not word.startswith("--") and len(word) > 1:
            value, has_value = word[2:], word[2:]
            letter = word[1]
            option = f"--{SBATCH_SHORT[letter]}" if command == "sbatch" and letter in SBATCH_SHORT else f"-{letter}"
            if value and arguments.get(option) == "none":  # grouped letters, such as -vH
                value, has_value, words = "", "", chain([f"-{value}"], words)
        else:
            option, has_value, value = word.partition("=")
        argument = arguments.get(option)
        if argument is None:
            ambiguous = ", or it is ambiguous" if any(name.startswith(option) for name in arguments) else ""
            suggestion = _suggest(option, value or next(words, ""), arguments, command)
            raise DirectiveError(f"{command} has no option {option!r}{ambiguous}{suggestion}")
        if argument == "required" and not has_value:
            value = next(words, "")
            if not value:
                raise DirectiveError(f"{command}'s option {option} needs a value")
        if argument == "none" and has_value:
            raise DirectiveError(f"{command}'s option {option} takes no value, got {value!r}")
        yield Directive(option, value)


def _complete(option: str, arguments: Mapping[str, Argument]) -> str:
    """Return the full name of an abbreviated option, or the option itself if it is unknown or ambiguous."""
    full = [name for name in arguments if name.startswith(option)]
    return full[0] if option not in arguments and len(full) == 1 else option


def _suggest(option: str, value: str, arguments: Mapping[str, Argument], command: str) -> str:
    if command == "sbatch":
        texts = (f"{option} {value.partition('=')[0]}", option)
        long = next((name for text in texts for name, short in EQUIVALENTS.items() if short == text), None)
        return f" (did you mean '--{long}'?)" if long else did_you_mean(option, arguments)
    short = EQUIVALENTS.get(option.removeprefix("--"))
    return f" (did you mean '{short}'?)" if short else did_you_mean(option, arguments)


def _list_arguments() -> dict[str, Argument]:
    kinds: tuple[tuple[str, Argument], ...] = (
        (SBATCH_LONG, "required"), (SBATCH_OPTIONAL, "optional"), (SBATCH_FLAGS, "none"),
    )  # fmt: skip
    return {f"--{name}": kind for names, kind in kinds for name in names.split()}


SBATCH_ARGUMENTS: Mapping[str, Argument] = _list_arguments()
QSUB_ARGUMENTS: Mapping[str, Argument] = {
    **{f"-{letter}": "required" for letter in QSUB_REQUIRED},
    **{f"-{letter}": "none" for letter in QSUB_FLAGS},
}
