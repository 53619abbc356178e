"""`harness systems check` finds planted mistakes in the files of systems, and none in the shipped ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.main import main
from harness.config.resources import list_resources
from harness.host.launch_line import parse_launch_line
from tests.conftest import ROOT

AURORA_CORES = "list:1-8:9-16:17-24:25-32:33-40:41-48:53-60:61-68:69-76:77-84:85-92:93-100"


def check(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str], with_settings: bool = False
) -> tuple[int, list[str]]:
    """Return the exit code and the lines about problems, without the name of the file, by default without settings."""
    (folder / "mine.yaml").write_text(text)
    code = main(["systems", "check", str(folder / "mine.yaml")])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(" ")]
    lines = [line.partition("mine.yaml:")[2] for line in lines]
    return code, [line for line in lines if with_settings or ": settings." not in line]


def make_system(base: str, *lines: str) -> str:
    return "\n".join(["name: mine", f"extends: {base}", "title: Mine", *lines]) + "\n"


@pytest.mark.parametrize("name", list_resources("systems"))
def test_shipped_systems_have_no_problems(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "check", name]) == 0
    assert capsys.readouterr().out.endswith("no problems (directives, settings, launch line)\n")


@pytest.mark.parametrize(
    ("base", "directive", "expected"),
    [
        ("slurm", "--acount=x", "sbatch has no option '--acount' (did you mean '--account'?)"),
        ("slurm", "-q debug --gpus_node=4", "sbatch has no option '--gpus_node' (did you mean '--gpus-per-node'?)"),
        ("slurm", "-Z", "sbatch has no option '-Z'"),
        ("slurm", "-l walltime=1:00", "sbatch has no option '-l' (did you mean '--time'?)"),
        ("slurm", "-lselect=1", "sbatch has no option '-l' (did you mean '--gres'?)"),
        ("slurm", "--mem-=4", "sbatch has no option '--mem-', or it is ambiguous"),
        ("slurm", "-vHZ", "sbatch has no option '-Z'"),
        ("slurm", "--partition", "sbatch's option --partition needs a value"),
        ("slurm", "--requeue=yes", "sbatch's option --requeue takes no value, got 'yes'"),
        ("slurm", "--time=10", "the job script sets --time itself"),
        ("slurm", "-N 4", "the job script sets --nodes itself"),
        ("slurm", "account=x", "sbatch has no option 'account' (did you mean '--account'?)"),
        ("slurm", "--comment='X", "no closing quotation in \"--comment='X\""),
        ("pbs", "--account=x", "qsub has no option '--account' (did you mean '-A'?)"),
        ("pbs", "-l select=4", "the job script sets -l select itself"),
        ("pbs", "-l filesystems=home,ncpus=4", "PBS refuses -l ncpus next to -l select; name it in `chunk`"),
        ("pbs", "-A", "qsub's option -A needs a value"),
        ("pbs", "-G 4", "qsub has no option '-G'"),
    ],
)  # fmt: skip
def test_directives_unknown_to_the_scheduler_are_found(
    base: str, directive: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, [line] = check(make_system(base, "directives:", f'  - "{directive}"'), tmp_path, capsys)
    assert code == 2
    assert line.startswith(f"5:5: directives.0: {expected}")


@pytest.mark.parametrize(
    "directive",
    ["-A abc -p gpu", "--gpus=4 # all", "--exclus", "--mem 0", "--signal=B:USR1@60", "-t1:00 ", "-vv -HOpgpu"],
)
def test_valid_directives_are_accepted(directive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The job script sets the time and exclusive nodes itself, so those two are found for that reason only."""
    _, lines = check(make_system("slurm", "directives:", f"  - '{directive}'"), tmp_path, capsys)
    assert [line.partition(": ")[2] for line in lines] == {
        "--exclus": ["directives.0: the job script sets --exclusive itself; remove the option"],
        "-t1:00 ": ["directives.0: the job script sets --time itself; remove the option"],
    }.get(directive, [])


def test_setting_that_nothing_reads_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = make_system(
        "slurm", "modules: ['echo $HARNESS_TOKEN']", "settings:", "  token: {help: read by a module line, default: a}",
        "  reservation: {help: a reservation, default: x}",
    )  # fmt: skip
    code, lines = check(text, tmp_path, capsys, with_settings=True)
    assert (code, lines) == (
        2, ["7:3: settings.reservation: no expression of this system or of a suite reads it"],
    )  # fmt: skip


def test_setting_that_only_the_template_reads_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.sh.j2").write_text("{% extends 'slurm.sh.j2' %}\necho $HARNESS_TOKEN_A\n")
    text = make_system(
        "slurm", "template: mine.sh.j2", "settings:", "  token_a: {help: read by the template, default: a}",
        "  token: {help: read by nothing, default: a}",
    )  # fmt: skip
    _, lines = check(text, tmp_path, capsys, with_settings=True)
    assert lines == ["7:3: settings.token: no expression of this system or of a suite reads it"]


def test_inherited_setting_that_has_lost_its_reader_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["directives: [--partition=gpu]", "settings: {partition: null}"]
    assert check(make_system("slurm", *lines), tmp_path, capsys, with_settings=True)[1] == [
        "1:1: settings.account: no expression of this system or of a suite reads it; `account: null` removes the"
        " setting of slurm.yaml"
    ]


@pytest.mark.parametrize(
    ("base", "lines", "expected"),
    [
        (
            "aurora", [f"--cpu-bind={AURORA_CORES.removesuffix(':93-100')}"],
            ["the list of CPUs has 11 entries for 12 ranks of a node"],
        ),
        ("aurora", [f"--cpu-bind={AURORA_CORES.replace('9-16', '8-15')}"], ["CPU 8 is bound to 2 ranks"]),
        (
            "aurora", [f"--cpu-bind={AURORA_CORES.replace('93-100', '301-308')}"],
            ["CPU 308 is bound, but a node has the CPUs 0 to 207"],
        ),
        (
            "aurora", [f"--cpu-bind={AURORA_CORES.replace('93-100', '93-96')}"],
            ["a rank is bound to 4 CPUs, but OMP_NUM_THREADS is 8"],
        ),
        ("aurora", [f"--cpu-bind={AURORA_CORES}"], []),
    ],
)  # fmt: skip
def test_binding_that_does_not_fit_the_ranks_is_found(
    base: str, lines: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "mpiexec -n {{ case.ranks }} --ppn {{ case.ranks_per_node }}"
    text = make_system(base, "launch:", *(f"  - '{line}'" for line in (first, *lines)))
    _, problems = check(text, tmp_path, capsys)
    assert [line.partition(": ")[2] for line in problems] == [f"launch.1: {message}" for message in expected]


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ("srun -n 8", "-n starts the program with 8 instead of 16, for 2 nodes x 8 ranks; use {{ case.ranks }}"),
        ("srun --ntasks={{ case.ranks }} --nodes 1", "--nodes starts the program with 1 instead of 2"),
        (
            "srun --ntasks={{ case.ranks }} --ntasks-per-node=4",
            "--ntasks-per-node starts the program with 4 instead of 8",
        ),
        ("srun -n {{ case.ranks }} -c 32", "8 ranks x 32 CPUs, but 64 cores have at most 128"),
        ("srun -n {{ case.ranks }} -c 4", "a rank is bound to 4 CPUs, but OMP_NUM_THREADS is 7"),
        ("srun -n {{ case.ranks }} --gpus-per-task=2", "16 accelerators, but a node has 8"),
        ("srun -n {{ case.ranks }} --gpus-per-node=16", "16 accelerators, but a node has 8"),
        ("srun -n {{ case.ranks }} --gpus-per-node=mi250x:16", "16 accelerators, but a node has 8"),
        ("srun -n16 -N2 -c32", "8 ranks x 32 CPUs, but 64 cores have at most 128"),
        ("srun --label", "srun does not receive the number of ranks"),
        ("jsrun -n 8", "expected srun, mpiexec or mpirun"),
    ],
)
def test_launch_line_that_does_not_add_up_is_found(
    launch: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, [line] = check(make_system("frontier", "launch:", f"  - {launch}"), tmp_path, capsys)
    assert code == 2
    assert line.startswith(f"5:5: launch.0: {expected}")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["chunk: {ncpus: 300}"], "chunk.ncpus: 300 requested, but a node has 16"),
        (["chunk: {mpiprocs: 2}"], "chunk.mpiprocs: 2, but node.ranks_per_node is 4"),
        (["chunk: {ngpus: 8}"], "chunk.ngpus: 8 requested, but a node has 4"),
    ],
)
def test_chunk_that_does_not_fit_a_node_is_found(
    lines: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = "node: {ranks_per_node: 4, cores: 8, accelerators: 4}"
    _, [line] = check(make_system("pbs", node, *lines), tmp_path, capsys)
    assert line.startswith(f"5:9: {expected}")


def test_srun_may_receive_nodes_and_ranks_per_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch = "srun -N {{ case.nodes }} --ntasks-per-node={{ case.ranks_per_node }}"
    assert check(make_system("frontier", "launch:", f"  - {launch}"), tmp_path, capsys)[1] == []


def test_node_without_accelerators_cannot_give_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = "node: {ranks_per_node: 4, cores: 8, accelerators: 0}"
    _, [line] = check(make_system("pbs", node, "chunk: {ngpus: 1}"), tmp_path, capsys)
    assert line == "5:9: chunk.ngpus: 1 requested, but a node has 0"


def test_problem_is_in_the_line_of_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("-n 8", "-n8"):
        text = make_system("frontier", "launch:", "  - srun --no-kill --network=x", f"  - {option}")
        assert check(text, tmp_path, capsys)[1][0].startswith("6:5: launch.1: -n starts the program with 8")


def test_chunk_is_only_for_pbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(make_system("slurm", "chunk: {ngpus: 4}"), tmp_path, capsys)[1] == [
        "4:1: chunk: not used, since only PBS reads it"
    ]


def test_problems_of_all_files_are_listed_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(make_system("slurm", "directives: [--acount=x]"))
    assert main(["systems", "check", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "aurora"]) == 2
    assert capsys.readouterr().err.count("did you mean '--account'?") == 2


def test_examples_of_the_readme_have_no_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "systems" / "README.md").read_text()
    examples = [part.partition("```")[0] for part in text.split("```yaml\n")[1:]]
    assert len(examples) == 2
    for example in examples:
        assert check(example, tmp_path, capsys, with_settings=True) == (0, [])


def test_launch_line_of_open_mpi_is_read() -> None:
    launch = parse_launch_line('/opt/mpi/bin/mpirun -np 8 --map-by slot,ppr:4:node --hostfile "$(first 2)"')
    assert launch is not None
    assert launch.numbers == {"ranks": ("-np", 8), "ranks_per_node": ("--map-by", 4)}
    for option in ("-N 4", "-map-by ppr:4:node"):
        launch = parse_launch_line(f"mpirun --n 8 {option}")
        assert launch is not None
        assert launch.numbers == {"ranks": ("--n", 8), "ranks_per_node": (option.split()[0], 4)}
