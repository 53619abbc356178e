"""Who wrote a bundle, from what, and when: the facts that crate, citation and codemeta share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import __version__
from harness.config import resources
from harness.host.provenance import run_git
from harness.protocol.text import pluralize
from harness.results.runs import RunRecord

DISTRIBUTION = "gfm-harness"
LICENSE = "BSD-3-Clause"


@dataclass(frozen=True)
class Author:
    """Who ran the cases: a person, an organization, or a person in an organization.

    Attributes:
        url: the web address of the organization.
    """

    person: str | None = None
    organization: str | None = None
    url: str | None = None

    @property
    def name(self) -> str:
        """The name of the person, or else of the organization."""
        return self.person or self.organization or "not named"


def find_author(person: str | None, organization: str | None, url: str | None) -> Author:
    """Return the author with these names; without any, the user of git in the current folder."""
    if person is None and organization is None:
        person = run_git(Path(), "config", "user.name") or None
    return Author(person, organization, url)


@dataclass(frozen=True)
class Description:
    """The facts about a bundle.

    Attributes:
        author: who ran the cases.
        license: the SPDX identifier of the licence of the records.
        time_s: Unix time of the last event; the bundle of equal records is equal whenever it is written.
        commits: the commits of the harness that ran the cases, as far as jobs recorded them; sorted by their hashes.
    """

    title: str
    summary: str
    author: Author
    license: str
    time_s: float
    commits: tuple[str, ...]

    @property
    def date(self) -> str:
        """The day of the last event, such as 2026-11-29 (UTC)."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.time_s))


def describe_records(records: Sequence[RunRecord], author: Author, license_id: str) -> Description:
    """Return the facts about a bundle of these records."""
    suites = sorted({str(record.case.get("suite", "unknown")) for record in records})
    systems = sorted({str(record.case.get("system", "unknown")) for record in records})
    n_done = sum(record.state == "done" for record in records)
    return Description(
        title=f"Records of {pluralize(len(records), 'case')} of gfm-harness: {', '.join(suites)}",
        summary=(
            f"Job scripts, parameters, events, telemetry and environments of {pluralize(len(records), 'case')}"
            f" ({n_done} done) of the suites {', '.join(suites)} on {', '.join(systems)}. `harness report` makes"
            " tables, figures and verdicts on claims from them."
        ),
        author=author,
        license=license_id,
        time_s=max((r.end_time_s for r in records if r.end_time_s is not None), default=0.0),
        commits=tuple(sorted({str(r.provenance["commit"]) for r in records if r.provenance.get("commit")})),
    )


@cache
def find_repository_url(commit: str | None) -> str:
    """Return the web address of the git remote, without a user name or a token, or that of the commit in an archive.

    The archive, Software Heritage, has the commit as soon as someone has had the repository archived.
    """
    remote = urlsplit(run_git(resources.REPO_ROOT, "remote", "get-url", "origin") or "")
    if remote.scheme == "https":
        return remote._replace(netloc=remote.netloc.rpartition("@")[2]).geturl().removesuffix(".git")
    return f"https://archive.softwareheritage.org/{f'swh:1:rev:{commit}' if commit else ''}"


def build_codemeta(description: Description) -> dict[str, Any]:
    """Return the content of codemeta.json (CodeMeta 3.0), which describes the software that ran."""
    try:
        requirements = [r for r in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in r]
    except metadata.PackageNotFoundError:
        requirements = []
    commit = description.commits[-1] if description.commits else None
    return {
        "@context": "https://w3id.org/codemeta/3.0",
        "@type": "SoftwareSourceCode",
        "name": DISTRIBUTION,
        "description": "Benchmark and reproducibility harness for graph foundation models of atomistic data",
        "version": __version__,
        "identifier": [f"swh:1:rev:{c}" for c in description.commits],
        "codeRepository": find_repository_url(commit),
        "license": f"https://spdx.org/licenses/{LICENSE}",
        "programmingLanguage": "Python",
        "runtimePlatform": "Python 3.11 or newer",
        "operatingSystem": "Linux",
        "author": [{"@type": "Organization", "name": "The gfm-harness developers"}],
        "softwareRequirements": requirements,
        "referencePublication": "https://arxiv.org/abs/2604.15380",
    }
