"""Write the artifact of a results folder: a bundle that describes itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from harness.artifact.appendix import create_template_environment, render_appendix
from harness.artifact.checklist import render_checklist
from harness.artifact.crate import METADATA, build_crate
from harness.artifact.metadata import Author, Description, build_codemeta, describe_records
from harness.claims.evaluate import SCORECARD, judge_papers
from harness.claims.papers import load_papers
from harness.config import resources
from harness.experiments.tables import build_results
from harness.host.provenance import read_git_archive
from harness.protocol.errors import UsageError
from harness.results.bundles import read_run_files, write_bundle
from harness.results.runs import load_runs

LEFT_OUT = "left-out.txt"
# The documents of the harness that belong in a bundle; those that are not installed are left out.
DOCUMENTS = (
    "README.md", "GUIDE.md", "LICENSE", "constraints.txt", "pyproject.toml", "noxfile.py",
    "harness/reference/datasets/shipped/README.md", "harness/reference/tasks/shipped/README.md",
)  # fmt: skip
DOCUMENT_FOLDERS = ("suites", "systems", "reports/claims")
DOCUMENT_SUFFIXES = (".md", ".yaml", ".j2", ".def", "Containerfile")


def write_artifact(results: Path, target: Path, author: Author, *, license_id: str, with_source: bool = False) -> int:
    """Write the runs of a results folder and files about them as a bundle; return their number, without checksums.

    Args:
        results: The results folder.
        target: A new folder, or a file that ends in .tar.xz.
        author: Who ran the cases.
        license_id: The SPDX identifier of the licence of the records.
        with_source: Whether the bundle contains the files of the commits that ran.

    Raises:
        UsageError: there are no runs, the target exists, or a commit is not in the repository of the harness.
    """
    run_files = read_run_files(results)
    records = load_runs(results / "runs")
    description = describe_records(records, author, license_id)
    papers = load_papers(())
    scores = judge_papers(papers, build_results(records), results)
    files = run_files.contents | read_documents()
    files[SCORECARD] = (json.dumps([asdict(s) for s in scores], indent=2) + "\n").encode()
    files["codemeta.json"] = (json.dumps(build_codemeta(description), indent=2) + "\n").encode()
    files["CITATION.cff"] = render_citation(description).encode()
    if run_files.left_out:
        rows = [f"{size}\t{name}\n" for name, size in run_files.left_out.items()]
        head = "Files of the runs that are not in this bundle (weights, stores, links): bytes and name\n"
        files[LEFT_OUT] = "".join([head, *rows]).encode(errors="replace")
    if with_source:
        files |= read_sources(description)
    for name, text in render_appendix(description, records, scores, results).items():
        files[name] = text.encode()
    files["checklist.md"] = render_checklist(files).encode()
    crate = build_crate(description, records, files, results)
    files[METADATA] = (json.dumps(crate, indent=1, ensure_ascii=False) + "\n").encode(errors="replace")
    write_bundle(files, target)
    return len(files)


def read_documents() -> dict[str, bytes]:
    """Return the documents of the harness by their names in a bundle, such as documents/README.md."""
    paths = {name: resources.REPO_ROOT / name for name in DOCUMENTS}
    for folder in DOCUMENT_FOLDERS:
        kind, _, inner = folder.partition("/")
        root = resources.get_resource_dir(kind) / inner
        paths |= {
            f"{folder}/{path.relative_to(root).as_posix()}": path
            for path in root.rglob("*")
            if path.name.endswith(DOCUMENT_SUFFIXES)
        }
    return {f"documents/{name}": path.read_bytes() for name, path in sorted(paths.items()) if path.is_file()}


def read_sources(description: Description) -> dict[str, bytes]:
    """Return the files of every commit that ran, as one tar archive for each."""
    if not description.commits:
        raise UsageError("--source: no job recorded a commit; leave the option out")
    sources = {}
    for commit in description.commits:
        content = read_git_archive(resources.REPO_ROOT, commit)
        if content is None:
            raise UsageError(
                f"--source: {resources.REPO_ROOT} is not a clone that contains the commit {commit} of some cases;"
                " fetch the commit, or leave the option out"
            )
        sources[f"source-{commit[:12]}.tar"] = content
    return sources


def render_citation(description: Description) -> str:
    """Return CITATION.cff, with which the bundle is cited."""
    return create_template_environment().get_template("CITATION.cff.j2").render(description=description)
