"""Sessions for users and developers: `python3 -m nox -s reproduce`, `-s tests`, ... (`nox -l` lists them).

All sessions share one environment, .nox/shared, created on first use from pyproject.toml and constraints.txt, so that
torch is installed once. The first session that tests adds what only tests need. For systems whose jobs have their own
environment, a small one without torch is enough: .nox/plan. Arguments after `--` go to the harness or to pytest.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
SHARED, PLAN = (ROOT / ".nox" / name for name in ("shared", "plan"))
# What jobs need, with the calculators that label structures, and what tests and comparisons of commits need as well.
REQUIREMENTS = {SHARED: ("--editable", ".[reference,mpi]", "pyscf", "tblite"), PLAN: ("--editable", ".")}
MORE_REQUIREMENTS = ("--editable", ".[dev]")
# Without a GPU, the tests interpret the GPU kernels with Triton, or compile them without running them.
TRITON = "triton==3.9.0; sys_platform == 'linux'"
# The case that leads to a verdict soonest, since it compiles nothing.
FIRST = ("precision", "-n", "painn")
# The arguments of `harness run` for `reproduce -- --quick`: one case of most suites.
QUICK = (
    ("precision", "-n", "painn"),
    ("ladder", "-n", "random-fp32"),
    ("scaling", "-n", "weak"),
    ("hpo", "-n", "painn"),
    ("transfer", "-n", "kvrh"),
    ("screening", "-n", "prototypes-full"),
    ("pretrain-short",),
)
# Tests that must not share the machine with others: benchmarks, and clusters of eight nodes on one machine.
ALONE = (
    "tests/system/test_cluster.py",
    "tests/system/test_drills.py",
    "tests/system/test_slurm.py",
    "tests/system/test_slurm_limits.py",
    "tests/system/test_slurm_preflight.py",
    "tests/system/test_slurm_suites.py",
    "tests/benchmarks",
)
# Systems whose jobs have their own Python environment.
WITH_OWN_ENVIRONMENT = {"frontier", "perlmutter", "aurora"}


def install_environment(session: nox.Session, folder: Path = SHARED, *, with_tests: bool = False) -> str:
    """Create an environment if it is missing or its definition has changed; return the folder of its programs.

    Args:
        session: The session.
        folder: The folder of the environment.
        with_tests: Whether the environment also needs MORE_REQUIREMENTS.
    """
    # containers often set this; without files of bytecode, every process would compile torch's sources again for 2 s
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    definition = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    digest = hashlib.sha256(b"".join([*definition, sys.version.encode(), str(ROOT).encode()])).hexdigest()
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    stamp = folder / "made-from"
    if not stamp.exists() or stamp.read_text() != digest:
        session.run(sys.executable, "-m", "venv", "--clear", str(folder), silent=True)
        if folder == SHARED:
            install(session, programs, "torch")
            with compile_operators(programs):
                install(session, programs, *REQUIREMENTS[folder])
        else:
            install(session, programs, *REQUIREMENTS[folder])
        stamp.write_text(digest)
    stamp = folder / "made-from-with-tests"
    if with_tests and not stamp.exists():
        install(session, programs, *MORE_REQUIREMENTS)
        stamp.touch()
    return str(programs)


def install(session: nox.Session, programs: Path, *requirements: str) -> None:
    """Install packages in the tested versions; Python compiles their modules when it first imports them."""
    session.run(
        str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--constraint", "constraints.txt", *requirements,
    )  # fmt: skip


@contextmanager
def compile_operators(programs: Path) -> Iterator[None]:
    """Compile the operators in C++, which the first cases need, while other packages are installed."""
    command = (str(programs / "python"), "-m", "harness.reference.ops.jit_build")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        yield


def install_triton(session: nox.Session) -> str:
    """Install Triton (1 GB) into a separate folder and return it; next to torch, it would change how torch compiles."""
    folder = ROOT / ".nox" / "triton"
    stamp = folder / "made-from"
    if not stamp.exists() or stamp.read_text() != TRITON + sys.version:
        shutil.rmtree(folder, ignore_errors=True)
        session.run(
            f"{install_environment(session)}/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--target", str(folder), TRITON,
        )  # fmt: skip
        folder.mkdir(exist_ok=True)
        stamp.write_text(TRITON + sys.version)
    return str(folder)


def run_harness(session: nox.Session, *arguments: str) -> None:
    """Run the harness command with the arguments of the session after `arguments`."""
    values = {argument.removeprefix("--system=") for argument in session.posargs}
    folder = PLAN if WITH_OWN_ENVIRONMENT & values else SHARED
    session.run(f"{install_environment(session, folder)}/harness", *arguments, *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Run eight suites at laptop scale and write results/index.html; `-- --quick` runs a part of most suites."""
    if "--quick" in session.posargs:
        session.posargs.remove("--quick")
        for arguments in QUICK:
            run_harness(session, "run", *arguments)
        return
    if not session.posargs:
        run_harness(session, "run", *FIRST)
    # crystals in FP64 would compile for another minute and decide no claim
    run_harness(
        session, "run", "ladder", "data", "scaling", "pretrain-short", "precision", "hpo", "transfer", "screening",
        "-x", "crystals-fp64",
    )  # fmt: skip


@nox.session
def preflight(session: nox.Session) -> None:
    """Check a machine before the first campaign; `-- --system frontier` writes jobs, and `--submit` submits them."""
    run_harness(session, "run", "preflight")


@nox.session
def gpu(session: nox.Session) -> None:
    """Check kernels, ladder, training and screening on one accelerator, or tiny ones on a CPU; needs no network.

    If the interpreter of nox has torch and the packages of the harness, nothing is installed.
    """
    command = ("-m", "harness", "run", "gpu", *session.posargs)
    check = "import torch, vesin, ase, safetensors, msgspec, pydantic, orjson, psutil, ruamel.yaml, pandas, matplotlib"
    check += ", rich, jinja2"
    if subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0:
        session.run(sys.executable, *command, env={"PYTHONPATH": str(ROOT)})
    else:
        session.run(f"{install_environment(session)}/python", *command)


@nox.session
def data(session: nox.Session) -> None:
    """Convert the sixteen datasets to stores and time reading (your files: `-- -S dataset_folder=DIR`)."""
    run_harness(session, "run", "data")


@nox.session
def ladder(session: nox.Session) -> None:
    """Run the inference ladder at laptop scale and at the paper's width, and a training step at that width."""
    run_harness(session, "run", "ladder", "ladder-337", "training-steps")


@nox.session
def scaling(session: nox.Session) -> None:
    """Measure weak and strong scaling here; `-- --system aurora` writes jobs, and `--submit` submits them."""
    run_harness(session, "run", "scaling")


@nox.session
def hpo(session: nox.Session) -> None:
    """Search hyperparameters of six backbones (minutes here); `-- --system frontier` writes jobs."""
    run_harness(session, "run", "hpo")


@nox.session
def precision(session: nox.Session) -> None:
    """Compare BF16, FP32 and FP64 for six backbones: rates, memory, errors against FP64 and against labels."""
    run_harness(session, "run", "precision")


@nox.session
def transfer(session: nox.Session) -> None:
    """Learn twelve downstream tasks from few labels: shipped data, or your files with `-- -S task_folder=DIR`."""
    run_harness(session, "run", "transfer")


@nox.session
def screening(session: nox.Session) -> None:
    """Screen tens of thousands of candidates here; `-- --system frontier` writes jobs for a billion."""
    run_harness(session, "run", "screening")


@nox.session
def models(session: nox.Session) -> None:
    """Compare interatomic potentials: yours in models/*.yaml and the shipped ones; speed, memory, errors, physics."""
    install_environment(session, with_tests=True)  # brings other potentials
    run_harness(session, "run", "models")
    run_harness(session, "run", "vector-biases")


@nox.session
def dynamics(session: nox.Session) -> None:
    """Measure molecular dynamics and relaxations in batches, compared with ASE one structure at a time (9 minutes)."""
    run_harness(session, "run", "dynamics")


@nox.session
def pretrain(session: nox.Session) -> None:
    """Pretrain at laptop scale (30 minutes on two cores); `-- --system frontier` writes jobs."""
    run_harness(session, "run", "pretrain")


@nox.session
def multitask(session: nox.Session) -> None:
    """Compare multi-task with single-task training (45 minutes on two cores with `-- --max-jobs 2`)."""
    run_harness(session, "run", "multitask")


@nox.session
def generalisation(session: nox.Session) -> None:
    """Train with and without kinds of structures (75 minutes on one core)."""
    run_harness(session, "run", "generalisation")


@nox.session
def imbalance(session: nox.Session) -> None:
    """Compare samplings and loss weights for datasets of different sizes (25 minutes on one core)."""
    run_harness(session, "run", "imbalance")


@nox.session
def regression(session: nox.Session) -> None:
    """Run benchmarks over the commits `-- A..B`; exit with 1 if one is slower. `--here` installs nothing (minutes)."""
    install_environment(session, with_tests=True)
    run_harness(session, "regression")


@nox.session
def report(session: nox.Session) -> None:
    """Rebuild tables, figures and pages from the run folders."""
    run_harness(session, "report")


@nox.session
def fast(session: nox.Session) -> None:
    """Check style, types and imports, and run the tests of changed files: under a minute for one file."""
    python = f"{check_style(session)}/python"
    affected = session.run(python, "-m", "tests.affected", silent=True)
    if files := str(affected).split():
        session.run(python, "-m", "pytest", "-m", "not slow", "-n", "2", *files, env={"OMP_NUM_THREADS": "1"},
                    success_codes=[0, 5])  # fmt: skip


@nox.session
def tests(session: nox.Session) -> None:
    """Check style, types and imports, and run all tests that are not slow, or pytest with the arguments after `--`."""
    programs = check_style(session)
    if session.posargs:
        session.run(f"{programs}/python", "-m", "pytest", *session.posargs)
    else:
        run_tests(session, "not slow")


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: long ones, clusters of eight nodes, benchmarks, interpreted GPU kernels."""
    pytest = (f"{install_environment(session, with_tests=True)}/python", "-m", "pytest")
    if session.posargs:
        session.run(*pytest, *session.posargs)
        return
    run_tests(session, "slow")
    session.run(*pytest, *ALONE)
    interpreted = {"PYTHONPATH": install_triton(session), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    session.run(*pytest, "tests/reference/ops/test_triton.py", env=interpreted)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure line coverage of the harness without the reference implementation; it must be at least 90%."""
    with_coverage = ("--cov", "--cov-report=term", "--ignore", "tests/reference", "--ignore", "tests/builders")
    run_tests(session, "not slow", *with_coverage, *session.posargs)


def check_style(session: nox.Session) -> str:
    """Check style, types and the direction of imports; return the folder of the environment's programs."""
    programs = install_environment(session, with_tests=True)
    session.run(f"{programs}/ruff", "check", ".")
    session.run(f"{programs}/ruff", "format", "--check", ".")
    session.run(f"{programs}/mypy")
    session.run(f"{programs}/lint-imports", "--no-cache", env={"NO_COLOR": "1"})
    return programs


def run_tests(session: nox.Session, marker: str, *arguments: str) -> None:
    """Run the tests with a marker, except ALONE, in two workers: most tests wait for processes that they start."""
    ignored = [option for path in ALONE for option in ("--ignore", path)]
    python = f"{install_environment(session, with_tests=True)}/python"
    pytest = (python, "-m", "pytest", "-m", marker, "-n", "2", "--dist", "loadfile")
    session.run(*pytest, *ignored, *arguments, env={"OMP_NUM_THREADS": "1"})
