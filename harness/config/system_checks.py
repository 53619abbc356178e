"""Checks of a system's file for mistakes that otherwise appear only when a job runs: `harness systems check`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness.config import expressions, resources
from harness.config.document import KeyPath, Location, Problem, iter_strings
from harness.config.scheduler_options import Directive, DirectiveError, parse_directive
from harness.config.system import ResolvedSystem
from harness.config.system_file import get_variable_name
from harness.config.yaml_loader import load_yaml
from harness.host.launch_line import LaunchLine, parse_launch_line
from harness.protocol.errors import UsageError

# Settings that the harness itself reads.
SETTINGS_OF_HARNESS = {"spare_nodes", "speed_test_s", "hydragnn_folder", "hydragnn_python"}
# PBS refuses to combine `select` with a job-wide request for these: `"-lresource=" cannot be used with "select" or
# "place"` (OpenPBS, src/lib/Liblog/pbs_messages.c).
CHUNK_RESOURCES = {"nodes", "ncpus", "mem", "ngpus", "mpiprocs", "ompthreads", "vmem", "host", "vnode", "accelerator"}
TEMPLATE_OPTION = re.compile(r"^#(?:SBATCH (--[\w-]+)|PBS (-l \w+|-\w))", re.MULTILINE)
# The largest number of hardware threads per core of the shipped systems; each thread is a logical CPU.
MAX_THREADS_PER_CORE = 2
# The number of nodes for which the launch line is checked; with 1, ranks and ranks per node would not differ.
LAUNCH_NODES = 2


def find_problems(system: ResolvedSystem) -> list[Problem]:
    """Return the mistakes in the directives, the settings, the chunk and the launch line of a system."""
    return [*check_directives(system), *check_settings(system), *check_chunk(system), *check_launch(system)]


def check_directives(system: ResolvedSystem) -> Iterator[Problem]:
    """Yield a problem for each directive that the scheduler does not know, or that the job script sets itself."""
    definition = system.definition
    if definition.scheduler == "local":
        if definition.directives:
            yield system.document.make_problem(("directives",), "directives: not used, since no scheduler reads them")
        return
    template_options = _list_template_options(system)
    for k, line in enumerate(definition.directives):
        text = system.render_line(line, ("directives", k))
        if not text.strip() or text.startswith("${"):  # without an option, or not known before a setting has a value
            continue
        try:
            options = parse_directive(text, definition.scheduler)
        except DirectiveError as error:
            yield system.document.make_problem(("directives", k), f"directives.{k}: {error}")
            continue
        for option in options:
            if message := _describe_conflict(option, template_options):
                yield system.document.make_problem(("directives", k), f"directives.{k}: {message}")


def _list_template_options(system: ResolvedSystem) -> set[str]:
    """Return the options that the template writes into every job script, such as `--time` or `-l select`."""
    return {slurm or pbs for slurm, pbs in TEMPLATE_OPTION.findall(_read_template(system))}


def _read_template(system: ResolvedSystem) -> str:
    """Return the text of the template of job scripts; empty if the file does not exist."""
    name = system.definition.template
    folders = (system.folder, resources.get_resource_dir("systems"))
    return next((path.read_text(errors="replace") for folder in folders if (path := folder / name).is_file()), "")


def _describe_conflict(option: Directive, template_options: set[str]) -> str:
    if option.name in template_options:
        return f"the job script sets {option.name} itself; remove the option"
    if option.name == "-l":
        for resource in (part.partition("=")[0].strip() for part in option.value.split(",")):
            if f"-l {resource}" in template_options:
                return f"the job script sets -l {resource} itself; remove the resource"
            if resource in CHUNK_RESOURCES:
                return f"PBS refuses -l {resource} next to -l select; name it in `chunk`"
    return ""


def check_settings(system: ResolvedSystem) -> Iterator[Problem]:
    """Yield a problem for each setting that neither this system, nor its template, nor a suite reads."""
    texts = [text for _, text in iter_strings(system.document.data)]
    read = {name for text in texts for name in _find_settings(text)} | SETTINGS_OF_HARNESS
    unread = [name for name in system.definition.settings if name not in read]
    read_by_suites = _list_suite_settings() if unread else set()
    template = _read_template(system) if unread else ""
    for name in unread:
        variable = re.compile(rf"\b{re.escape(get_variable_name(name))}\b")
        if name in read_by_suites or any(variable.search(text) for text in (*texts, template)):
            continue
        message = f"settings.{name}: no expression of this system or of a suite reads it"
        location = system.document.locate(("settings", name))
        if location.path != system.document.path:  # in a file that this one extends
            message += f"; `{name}: null` removes the setting of {location.path.name}"
            location = Location(system.document.path, 1, 1)
        yield Problem(location, message)


def _find_settings(text: str) -> set[str]:
    if not expressions.is_expression(text):
        return set()
    return {name for namespace, name in expressions.parse(text).attributes if namespace == "settings"}


def _list_suite_settings() -> set[str]:
    """Return the settings that suites read."""
    paths = [resources.find_resource("suites", suite) for suite in resources.list_resources("suites")]
    return {name for path in paths for name in _list_settings_of_suite(path)}


@cache
def _list_settings_of_suite(path: Path) -> frozenset[str]:
    """Return the settings that a suite reads; none if its file cannot be loaded."""
    try:
        data = load_yaml(path).data
    except UsageError:
        return frozenset()
    return frozenset(name for _, text in iter_strings(data) for name in _find_settings(text))


def check_chunk(system: ResolvedSystem) -> Iterator[Problem]:
    """Yield a problem for each resource that a job requests of PBS on each node, and that does not fit the node."""
    definition, node = system.definition, system.definition.node
    if definition.chunk and definition.scheduler != "pbs":
        yield system.document.make_problem(("chunk",), "chunk: not used, since only PBS reads it")
        return
    values = {name: value for name, _, value in (part.partition("=") for part in system.chunk.split(":")[1:])}
    limits = {"ngpus": node.accelerators} | ({"ncpus": MAX_THREADS_PER_CORE * node.cores} if node.cores else {})
    for name, limit in limits.items():
        if values.get(name, "").isdecimal() and limit < int(values[name]):
            message = f"chunk.{name}: {values[name]} requested, but a node has {limit}"
            yield system.document.make_problem(("chunk", name), message)
    ranks = values.get("mpiprocs", "")
    if ranks.isdecimal() and int(ranks) != system.ranks_per_node:
        message = f"chunk.mpiprocs: {ranks}, but node.ranks_per_node is {system.ranks_per_node}"
        yield system.document.make_problem(("chunk", "mpiprocs"), message)


def check_launch(system: ResolvedSystem) -> Iterator[Problem]:
    """Yield a problem for each number of the launch line that does not fit the ranks and cores of full nodes."""
    ranks = system.ranks_per_node
    is_local = system.definition.scheduler == "local"
    nodes = 1 if is_local else LAUNCH_NODES
    shape = {"nodes": nodes, "ranks_per_node": ranks, "ranks": nodes * ranks}
    lines = [system.render_line(line, ("launch", k), case=shape) for k, line in enumerate(system.definition.launch)]
    launch = parse_launch_line(" ".join(lines))
    messages = [] if is_local and launch is None else list(_compare_launch(system, launch, shape))
    for word, message in messages:
        option = re.compile(rf"(?<!\S){re.escape(word)}(?![A-Za-z_-])")
        position = next((k for k, line in enumerate(lines) if word and option.search(line)), 0)
        key_path: KeyPath = ("launch", position)
        yield system.document.make_problem(key_path, f"launch.{position}: {message}")


def _compare_launch(
    system: ResolvedSystem, launch: LaunchLine | None, shape: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """Yield for each mistake the word of the launch line that it is about, and the message."""
    if launch is None:
        yield "", "expected srun, mpiexec or mpirun"
        return
    ranks, node = shape["ranks_per_node"], system.definition.node
    expected_numbers = {"nodes": shape["nodes"], "ranks": shape["ranks"], "ranks_per_node": ranks}
    names = {"nodes": "case.nodes", "ranks": "case.ranks", "ranks_per_node": "case.ranks_per_node"}
    for quantity, expected in expected_numbers.items():
        number = launch.numbers.get(quantity)
        if number is not None and number[1] != expected:
            detail = f"for {shape['nodes']} nodes x {ranks} ranks; use {{{{ {names[quantity]} }}}}"
            yield number[0], f"{number[0]} starts the program with {number[1]} instead of {expected}, {detail}"
    # srun multiplies both if it does not receive the number of ranks; an mpiexec would use all nodes of the job
    is_product = launch.command == "srun" and {"nodes", "ranks_per_node"} <= launch.numbers.keys()
    if "ranks" not in launch.numbers and not is_product:
        yield "", f"{launch.command} does not receive the number of ranks; add -n {{{{ case.ranks }}}}"
    logical_cpus = MAX_THREADS_PER_CORE * (node.cores or 0)
    per_rank = launch.numbers.get("cpus_per_rank")
    if per_rank and logical_cpus and ranks * per_rank[1] > logical_cpus:
        yield per_rank[0], f"{ranks} ranks x {per_rank[1]} CPUs, but {node.cores} cores have at most {logical_cpus}"
    for quantity, count in (("accelerators", 1), ("accelerators_per_rank", ranks)):
        number = launch.numbers.get(quantity)
        if number and count * number[1] > node.accelerators:
            yield number[0], f"{count * number[1]} accelerators, but a node has {node.accelerators}"
    yield from _check_binding(launch, system, logical_cpus)
    yield from _check_threads(launch, system, per_rank[1] if per_rank else 0)


def _check_binding(launch: LaunchLine, system: ResolvedSystem, logical_cpus: int) -> Iterator[tuple[str, str]]:
    """Yield the mistakes of a list that binds each rank of a node to CPUs."""
    if launch.binding is None:
        return
    word, groups = launch.binding.option, launch.binding.cpus
    ranks = system.ranks_per_node
    if len(groups) != ranks:
        yield word, f"the list of CPUs has {len(groups)} entries for {ranks} ranks of a node"
    counts = Counter(cpu for group in groups for cpu in set(group))
    if shared := sorted(cpu for cpu, n in counts.items() if n > 1):
        yield word, f"CPU {shared[0]} is bound to {counts[shared[0]]} ranks"
    if logical_cpus and counts and max(counts) >= logical_cpus:
        yield word, f"CPU {max(counts)} is bound, but a node has the CPUs 0 to {logical_cpus - 1}"


def _check_threads(launch: LaunchLine, system: ResolvedSystem, per_rank: int) -> Iterator[tuple[str, str]]:
    """Yield a mistake if a rank has more threads than CPUs."""
    threads = system.environment.get("OMP_NUM_THREADS", "")
    cpus = min((len(group) for group in launch.binding.cpus), default=0) if launch.binding else per_rank
    if threads.isdecimal() and 0 < cpus < int(threads):
        word = launch.binding.option if launch.binding else launch.numbers["cpus_per_rank"][0]
        yield word, f"a rank is bound to {cpus} CPUs, but OMP_NUM_THREADS is {threads}"
