"""Everything a user runs, one session each: `python3 -m nox -s reproduce`, `-s tests`, ... (`nox -l`).

All sessions share one environment, .nox/shared, made on first use from pyproject.toml and constraints.txt, so that
torch is installed once. Only for machines whose jobs bring an environment of their own, as on a login node, a small one
without torch does: .nox/plan. Words after `--` go to the harness or to pytest.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
SHARED, PLAN = (ROOT / ".nox" / name for name in ("shared", "plan"))
EXTRAS = {SHARED: "[reference,mpi,dev]", PLAN: ""}
# What the kernels for GPUs are tested with where there is none: by interpretation, and compiled but not run.
TRITON = "triton==3.9.0; sys_platform == 'linux'"
# What `reproduce -- --quick` runs: one case of most suites.
QUICK = (
    ("ladder", "-n", "random-fp32"),
    ("scaling", "-n", "weak"),
    ("precision", "-n", "painn"),
    ("hpo", "-n", "painn"),
    ("transfer", "-n", "kvrh"),
    ("screening", "-n", "prototypes-all"),
    ("pretrain-short",),
)
# Nothing runs beside benchmarks, or beside a cluster of eight nodes on one machine.
ALONE = (
    "tests/system/test_cluster.py",
    "tests/system/test_slurm.py",
    "tests/system/test_slurm_limits.py",
    "tests/system/test_slurm_suites.py",
)
ALONE += ("tests/benchmarks",)
WITH_OWN_ENVIRONMENT = {"frontier", "perlmutter", "aurora"}


def environment(session: nox.Session, folder: Path = SHARED) -> str:
    """The folder of an environment's programs, made or renewed if what defines it has changed."""
    definition = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    digest = hashlib.sha256(b"".join([*definition, sys.version.encode(), str(ROOT).encode()])).hexdigest()
    stamp = folder / "made-from"
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    if not stamp.exists() or stamp.read_text() != digest:
        session.run(sys.executable, "-m", "venv", "--clear", str(folder), silent=True)
        session.run(
            str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--constraint", "constraints.txt", "--editable", f".{EXTRAS[folder]}",
        )  # fmt: skip
        stamp.write_text(digest)
    return str(programs)


def triton(session: nox.Session) -> str:
    """A folder of Triton alone: in the environment it would change what torch compiles for. 1 GB, once."""
    folder = ROOT / ".nox" / "triton"
    stamp = folder / "made-from"
    if not stamp.exists() or stamp.read_text() != TRITON + sys.version:
        shutil.rmtree(folder, ignore_errors=True)
        session.run(
            f"{environment(session)}/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--target", str(folder), TRITON,
        )  # fmt: skip
        folder.mkdir(exist_ok=True)
        stamp.write_text(TRITON + sys.version)
    return str(folder)


def harness(session: nox.Session, *words: str) -> None:
    """Run the harness command with the session's own words after those given."""
    named = {word.removeprefix("--system=") for word in session.posargs}
    folder = PLAN if WITH_OWN_ENVIRONMENT & named else SHARED
    session.run(f"{environment(session, folder)}/harness", *words, *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Eight suites at laptop scale here, then the report: results/index.html. With `-- --quick` a part of most."""
    if "--quick" in session.posargs:
        session.posargs.remove("--quick")
        for words in QUICK:
            harness(session, "run", *words)
        return
    harness(session, "run", "data", "ladder", "scaling", "pretrain-short", "precision", "hpo", "transfer", "screening")


@nox.session
def data(session: nox.Session) -> None:
    """The sixteen datasets to stores, and reading them: the shipped sets, or your files with `-- -S data=DIR`."""
    harness(session, "run", "data")


@nox.session
def ladder(session: nox.Session) -> None:
    """The inference ladder, at laptop scale and at the paper's width, and a step of training at that width."""
    harness(session, "run", "ladder", "ladder-337", "training-steps")


@nox.session
def scaling(session: nox.Session) -> None:
    """Weak and strong scaling: here, or `-- --system aurora` to write its jobs, `--submit` to submit them."""
    harness(session, "run", "scaling")


@nox.session
def hpo(session: nox.Session) -> None:
    """Hyperparameter search for six backbones (minutes here), or `-- --system frontier` to write its jobs."""
    harness(session, "run", "hpo")


@nox.session
def precision(session: nox.Session) -> None:
    """BF16, FP32 and FP64 side by side for six backbones: rates, memory, and both kinds of error."""
    harness(session, "run", "precision")


@nox.session
def transfer(session: nox.Session) -> None:
    """Twelve downstream tasks from few labels: shipped data, or your files with `-- -S tasks=DIR`."""
    harness(session, "run", "transfer")


@nox.session
def screening(session: nox.Session) -> None:
    """Candidates by the ten thousand here, or `-- --system frontier` to write jobs for the billion."""
    harness(session, "run", "screening")


@nox.session
def pretrain(session: nox.Session) -> None:
    """Multi-task pretraining at laptop scale (30 minutes on two cores), or `-- --system frontier` to write its jobs."""
    harness(session, "run", "pretrain")


@nox.session
def multitask(session: nox.Session) -> None:
    """One model on all datasets against one on each (45 minutes on two cores with `-- --max-jobs 2`)."""
    harness(session, "run", "multitask")


@nox.session
def regression(session: nox.Session) -> None:
    """Benchmarks over commits: `-- A..B`; exit code 1 if one became worse. `--here` installs nothing: minutes."""
    harness(session, "regression")


@nox.session
def report(session: nox.Session) -> None:
    """Tables, figures and pages from what has been run."""
    harness(session, "report")


@nox.session
def fast(session: nox.Session) -> None:
    """Style, types, imports, and the tests of what differs from the last commit: under a minute for one file."""
    python = f"{check_style(session)}/python"
    affected = session.run(python, "-m", "tests.affected", silent=True)
    if files := str(affected).split():
        session.run(python, "-m", "pytest", "-m", "not slow", "-n", "2", *files, env={"OMP_NUM_THREADS": "1"},
                    success_codes=[0, 5])  # fmt: skip


@nox.session
def tests(session: nox.Session) -> None:
    """Style, types, imports, and all tests that are not slow; words after `--` go to pytest instead."""
    programs = check_style(session)
    if session.posargs:
        session.run(f"{programs}/python", "-m", "pytest", *session.posargs)
    else:
        two_at_a_time(session, "not slow")


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that `tests` leaves out: long ones, clusters of eight nodes, benchmarks, GPU kernels interpreted."""
    pytest = (f"{environment(session)}/python", "-m", "pytest")
    if session.posargs:
        session.run(*pytest, *session.posargs)
        return
    two_at_a_time(session, "slow")
    session.run(*pytest, *ALONE)
    interpreted = {"PYTHONPATH": triton(session), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    session.run(*pytest, "tests/reference/ops/test_triton.py", env=interpreted)


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines of the harness, apart from the reference implementation, that the tests reach: 90% at least."""
    with_coverage = ("--cov", "--cov-report=term", "--ignore", "tests/reference", "--ignore", "tests/builders")
    two_at_a_time(session, "not slow", *with_coverage, *session.posargs)


def check_style(session: nox.Session) -> str:
    """Check style, types and the direction of imports; return the folder of the environment's programs."""
    programs = environment(session)
    session.run(f"{programs}/ruff", "check", ".")
    session.run(f"{programs}/ruff", "format", "--check", ".")
    session.run(f"{programs}/mypy")
    session.run(f"{programs}/lint-imports", "--no-cache", env={"NO_COLOR": "1"})
    return programs


def two_at_a_time(session: nox.Session, marked: str, *words: str) -> None:
    """Run tests, most of which wait for processes that they started, but not those of ALONE."""
    left_out = [word for path in ALONE for word in ("--ignore", path)]
    pytest = (f"{environment(session)}/python", "-m", "pytest", "-m", marked, "-n", "2", "--dist", "loadfile")
    session.run(*pytest, *left_out, *words, env={"OMP_NUM_THREADS": "1"})
