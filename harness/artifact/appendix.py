"""The artifact appendix in the form of the SC conference: contributions, computational artifacts, and how to use them.

A contribution is a claim of a paper for which cases of the bundle are evidence. A computational artifact is a campaign:
the cases of a suite on a system. Source of the form: https://sc24.supercomputing.org/program/papers/ad-ae-appendices/
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from harness.artifact.metadata import Description
from harness.claims.scorecard import Score
from harness.config import resources
from harness.document.blocks import format_quantity
from harness.execution.case_files import read_exit_code
from harness.experiments.registry import find_experiment
from harness.host.environment import ENVIRONMENT_FILE
from harness.protocol.text import pluralize, sanitize_line
from harness.report.render import escape_markdown
from harness.results.runs import RunRecord

NOT_RECORDED = "not recorded"
MAX_UNBROKEN = 40  # longer texts, such as paths, may break after slashes, underscores and hyphens
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "\N{EN DASH}": "--", "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MICRO SIGN}": r"\textmu{}", "\N{GREEK SMALL LETTER MU}": r"\textmu{}", "\N{DEGREE SIGN}": r"\textdegree{}",
    "\N{SUPERSCRIPT TWO}": r"\textsuperscript{2}", "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{EM DASH}": "---",
    "\N{MINUS SIGN}": "$-$", "\N{LESS-THAN OR EQUAL TO}": r"$\le$", "\N{GREATER-THAN OR EQUAL TO}": r"$\ge$",
    "\N{ALMOST EQUAL TO}": r"$\approx$", "\N{RIGHTWARDS ARROW}": r"$\to$", "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{LEFT SINGLE QUOTATION MARK}": "`", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``", "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
}  # fmt: skip
# LaTeX's commands of combining characters, for letters that its encoding T1 lacks.
ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": r"\`", "\N{COMBINING ACUTE ACCENT}": r"\'", "\N{COMBINING CIRCUMFLEX ACCENT}": r"\^",
    "\N{COMBINING TILDE}": r"\~", "\N{COMBINING MACRON}": r"\=", "\N{COMBINING BREVE}": r"\u",
    "\N{COMBINING DOT ABOVE}": r"\.", "\N{COMBINING DIAERESIS}": r'\"', "\N{COMBINING CARON}": r"\v",
    "\N{COMBINING DOT BELOW}": r"\d", "\N{COMBINING CEDILLA}": r"\c", "\N{COMBINING MACRON BELOW}": r"\b",
    "\N{COMBINING COMMA BELOW}": r"\textcommabelow",
}  # fmt: skip
# The Greek letters that have a command.
GREEK = re.compile(
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega"
    "|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega"
)


@dataclass(frozen=True)
class Contribution:
    """A claim with evidence.

    Attributes:
        label: C1, C2, ...
        score: The verdict on the claim.
        expected: The measured value with its interval, the paper's value and the verdict.
        artifacts: The labels of the artifacts that are evidence.
    """

    label: str
    score: Score
    expected: str
    artifacts: tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """The cases of one campaign.

    Attributes:
        label: A1, A2, ...
        campaign: The name of the campaign.
        suite: The name of its suite.
        system: The name of the system.
        records: The cases.
        pages: The files of the pages of the report that show them, with their titles.
        minutes: The sum of the times of the cases; None if no job recorded one.
        longest_minutes: The time of the longest case.
        timed: The number of cases whose time is recorded.
        hardware, software, datasets: The distinct descriptions of the cases, one line each.
        environment: The first file with the environment of a case; None if there is none.
    """

    label: str
    campaign: str
    suite: str
    system: str
    records: Sequence[RunRecord]
    pages: Sequence[tuple[str, str]]
    minutes: float | None
    longest_minutes: float | None
    timed: int
    hardware: list[str]
    software: list[str]
    datasets: list[str]
    environment: str | None


def build_artifacts(records: Sequence[RunRecord], root: Path) -> list[Artifact]:
    """Return one artifact for each campaign with cases that have run."""
    campaigns: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.state != "not run":
            campaigns.setdefault(record.campaign, []).append(record)
    return [_build_artifact(f"A{k}", name, cases, root) for k, (name, cases) in enumerate(campaigns.items(), 1)]


def _build_artifact(label: str, campaign: str, records: Sequence[RunRecord], root: Path) -> Artifact:
    seconds = [s for s in map(read_seconds, records) if s is not None]
    experiments = filter(None, (find_experiment(record.program) for record in records))
    environments = sorted(p for record in records if (p := record.folder / ENVIRONMENT_FILE).is_file())
    return Artifact(
        label=label,
        campaign=campaign,
        suite=str(records[0].case.get("suite", NOT_RECORDED)),
        system=str(records[0].case.get("system", NOT_RECORDED)),
        records=records,
        pages=list(dict.fromkeys((f"{experiment.page}.html", experiment.title) for experiment in experiments)),
        minutes=sum(seconds) / 60 if seconds else None,
        longest_minutes=max(seconds) / 60 if seconds else None,
        timed=len(seconds),
        hardware=_list_distinct(map(describe_hardware, records)),
        software=_list_distinct(map(describe_software, records)),
        datasets=_list_distinct(line for record in records for line in describe_datasets(record)),
        environment=environments[0].relative_to(root).as_posix() if environments else None,
    )


def read_seconds(record: RunRecord) -> float | None:
    """Return how long a case took as its job measured it, or from its first to its last event; None if unknown."""
    result = read_exit_code(record.location)
    return result[1] if result is not None and result[1] is not None else record.duration_s


def describe_hardware(record: RunRecord) -> str:
    """Return the nodes, ranks, processor, memory and device of a case; what is missing is `not recorded`."""
    provenance, runtime = record.provenance, record.facts.get("runtime", {})
    memory = f"{provenance['memory_bytes'] / 2**30:.0f} GiB" if provenance.get("memory_bytes") else NOT_RECORDED
    cores = pluralize(provenance["cores"], "core") if provenance.get("cores") else f"cores {NOT_RECORDED}"
    device = runtime.get("device_name") or runtime.get("device") or NOT_RECORDED
    nodes, ranks = record.case.get("nodes"), record.case.get("ranks")
    shape = f"{pluralize(nodes, 'node')}, {pluralize(ranks, 'rank')}" if nodes and ranks else f"nodes {NOT_RECORDED}"
    return f"{shape}; processor {provenance.get('cpu') or NOT_RECORDED}, {cores}, memory {memory}; device {device}"


def describe_software(record: RunRecord) -> str:
    """Return the versions that the job recorded."""
    provenance = record.provenance
    commit = provenance.get("commit")
    changed = " with changes that are in no commit" if provenance.get("changed_since_commit") else ""
    packages = ", ".join(f"{name} {version}" for name, version in sorted(provenance.get("packages", {}).items()))
    return (
        f"gfm-harness {provenance.get('harness') or NOT_RECORDED}, commit {commit or NOT_RECORDED}{changed}; Python"
        f" {provenance.get('python') or NOT_RECORDED}; {packages or f'packages {NOT_RECORDED}'}; operating system"
        f" {provenance.get('platform') or NOT_RECORDED}"
    )


def describe_datasets(record: RunRecord) -> list[str]:
    """Return a line for each dataset that the case names in its workload, with its data origin."""
    workload = record.facts.get("workload")
    datasets = workload.get("datasets") if isinstance(workload, Mapping) else None
    if not isinstance(datasets, list):
        return []
    rows = [row for row in datasets if isinstance(row, Mapping)]
    names = [(str(row.get("dataset") or "?"), row.get("data_origin")) for row in rows]
    return [f"{name} ({origin})" if origin else name for name, origin in names]


def build_contributions(scores: Sequence[Score], artifacts: Sequence[Artifact]) -> list[Contribution]:
    """Return the claims for which an artifact is evidence."""
    contributions: list[Contribution] = []
    for score in scores:
        campaigns = {Path(path).parts[1] for path in score.evidence if len(Path(path).parts) > 2}
        labels = tuple(artifact.label for artifact in artifacts if artifact.campaign in campaigns)
        if labels:
            contributions.append(Contribution(f"C{len(contributions) + 1}", score, describe_expected(score), labels))
    return contributions


def describe_expected(score: Score) -> str:
    """Return the measured value with its interval, the paper's value, and the verdict with its basis."""
    paper = format_quantity(score.paper_value, score.unit)
    if score.measured_value is None:
        return f"no value (paper: {paper}); verdict: {score.verdict}"
    value = format_quantity(score.measured_value, score.unit)
    interval = f" [95%: {score.ci_low:.4g} to {score.ci_high:.4g}]" if None not in (score.ci_low, score.ci_high) else ""
    basis = f", basis: {score.basis}" if score.basis else ""
    return f"{value}{interval} (paper: {paper}); verdict: {score.verdict}{basis}"


def format_minutes(minutes: float | None) -> str:
    """Return minutes as text, rounded up: to tenths below ten, else to whole minutes; `not recorded` for None."""
    if minutes is None:
        return NOT_RECORDED
    # 1.1 x 10 is a little above 11 in floating-point numbers
    return f"{math.ceil(round(minutes * 10, 6)) / 10:.1f}" if minutes < 10 else f"{math.ceil(minutes):,d}"


def render_appendix(
    description: Description, records: Sequence[RunRecord], scores: Sequence[Score], root: Path
) -> dict[str, str]:
    """Return appendix.md and appendix.tex by name.

    Args:
        description: The name, author and date of the bundle.
        records: The cases.
        scores: The verdicts on claims.
        root: The results folder.
    """
    artifacts = build_artifacts(records, root)
    contributions = build_contributions(scores, artifacts)
    citations = _list_distinct(c.score.citation for c in contributions)
    supported = {(c.score.paper, c.score.id) for c in contributions}

    def list_contributions(artifact: Artifact) -> list[Contribution]:
        return [c for c in contributions if artifact.label in c.artifacts]

    def cite(score: Score) -> str:
        return f"{score.source} [{1 + citations.index(score.citation)}]" if len(citations) > 1 else score.source

    context: dict[str, Any] = {
        "description": description,
        "artifacts": artifacts,
        "contributions": contributions,
        "citations": citations,
        "unsupported_scores": [score for score in scores if (score.paper, score.id) not in supported],
        "contributions_of": list_contributions,
        "cite": cite,
        "cited_elements": lambda artifact: _list_distinct(cite(c.score) for c in list_contributions(artifact)),
    }
    environment = create_template_environment()
    markdown = environment.get_template("appendix.md.j2").render(context)
    latex = environment.get_template("appendix.tex.j2").render(context)
    return {"appendix.md": markdown, "appendix.tex": latex}


def create_template_environment() -> jinja2.Environment:
    """Return an environment with the templates of reports/artifact."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.get_resource_dir("reports") / "artifact"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"tex": escape_latex, "md": escape_markdown, "minutes": format_minutes}
    return environment


def escape_latex(text: object) -> str:
    """Return text in which LaTeX reads no command; characters that the document cannot show become question marks."""
    line = sanitize_line(unicodedata.normalize("NFC", str(text)))
    escaped = "".join(map(_escape_letter, line))
    return re.sub(r"([/_-])(?=[\w\\])", r"\1\\allowbreak{}", escaped) if len(line) > MAX_UNBROKEN else escaped


def _escape_letter(letter: str) -> str:
    if letter in LATEX_SPECIAL:
        return LATEX_SPECIAL[letter]
    if ord(letter) < 0x180:
        return letter
    alphabet, _, name = unicodedata.name(letter, "").replace("LAMDA", "LAMBDA").partition(" LETTER ")
    command = name.lower() if alphabet == "GREEK SMALL" else name.capitalize()
    if alphabet in ("GREEK SMALL", "GREEK CAPITAL") and GREEK.fullmatch(command):
        return rf"$\{command}$"
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if not base.isascii() or any(mark not in ACCENTS for mark in marks):
        return "?"
    for mark in marks:
        base = f"{ACCENTS[mark]}{{{base}}}"
    return base


def _list_distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
