"""Everything a user runs, one session each: `python3 -m nox -s reproduce`, `-s tests`, ... (`nox -l`).

All sessions share one environment, .nox/shared, made on first use from pyproject.toml and constraints.txt, so that
torch is installed once. Words after `--` go to the harness or to pytest.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / "shared"
EXTRAS = "reference,mpi,dev"


def environment(session: nox.Session) -> str:
    """The folder of the shared environment's programs, made or renewed if what defines it has changed."""
    definition = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    digest = hashlib.sha256(b"".join([*definition, sys.version.encode(), str(ROOT).encode()])).hexdigest()
    stamp = SHARED / "made-from"
    programs = SHARED / ("Scripts" if sys.platform == "win32" else "bin")
    if not stamp.exists() or stamp.read_text() != digest:
        session.run(sys.executable, "-m", "venv", "--clear", str(SHARED), silent=True)
        session.run(
            str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--constraint", "constraints.txt", "--editable", f".[{EXTRAS}]",
        )  # fmt: skip
        stamp.write_text(digest)
    return str(programs)


def harness(session: nox.Session, *words: str) -> None:
    """Run the harness command with the session's own words after those given."""
    session.run(f"{environment(session)}/harness", *words, *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Every suite at laptop scale on this machine, then the report: results/index.html."""
    harness(session, "run", "ladder")


@nox.session
def ladder(session: nox.Session) -> None:
    """The inference ladder, at laptop scale and at the paper's width."""
    harness(session, "run", "ladder", "ladder-337")


@nox.session
def checkpoint(session: nox.Session) -> None:
    """Train the shipped model anew (about 25 minutes on two cores)."""
    harness(session, "run", "checkpoint", "-S", "threads=2")


@nox.session
def report(session: nox.Session) -> None:
    """Tables, figures and pages from what has been run."""
    harness(session, "report")


@nox.session
def tests(session: nox.Session) -> None:
    """Style, types and the whole test suite."""
    programs = environment(session)
    session.run(f"{programs}/ruff", "check", ".")
    session.run(f"{programs}/ruff", "format", "--check", ".")
    session.run(f"{programs}/mypy")
    session.run(f"{programs}/python", "-m", "pytest", *session.posargs)
