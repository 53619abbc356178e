"""The metadata of a bundle as a Process Run Crate (RO-Crate 1.1): one CreateAction for each case that ran.

Source: https://w3id.org/ro/wfrun/process/0.5
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from harness.artifact.metadata import Author, Description, find_repository_url
from harness.results.runs import RunRecord

METADATA = "ro-crate-metadata.json"
CONTEXT = "https://w3id.org/ro/crate/1.1/context"
CRATE, PROCESS_RUN_CRATE = "https://w3id.org/ro/crate/1.1", "https://w3id.org/ro/wfrun/process/0.5"
# Files of a case that exist before its program runs; all others are results.
INPUTS = ("case.json", "job.sh")
MEDIA_TYPES = {
    ".cff": "application/yaml", ".csv": "text/csv", ".json": "application/json", ".jsonl": "application/jsonl",
    ".md": "text/markdown", ".sh": "application/x-sh", ".tex": "application/x-tex", ".toml": "application/toml",
    ".yaml": "application/yaml", ".tar": "application/x-tar",
}  # fmt: skip
Entity = dict[str, Any]


def build_crate(
    description: Description, records: Sequence[RunRecord], files: Mapping[str, bytes], root: Path
) -> dict[str, Any]:
    """Return the content of ro-crate-metadata.json.

    Args:
        description: The name, author, licence and date of the bundle.
        records: The cases.
        files: The contents of all files of the bundle but the metadata and the checksums, by name.
        root: The results folder of the cases.
    """
    runs = [record for record in records if record.state != "not run"]
    applications = [build_application(record) for record in runs]
    actions = [
        build_action(record, files, root, application, description)
        for record, application in zip(runs, applications, strict=True)
    ]
    people = build_people(description.author)
    license_entity = {
        "@id": f"https://spdx.org/licenses/{description.license}",
        "@type": "CreativeWork",
        "name": description.license,
    }
    dataset: Entity = {
        "@id": "./",
        "@type": "Dataset",
        "name": description.title,
        "description": description.summary,
        "datePublished": format_time(description.time_s),
        "license": {"@id": license_entity["@id"]},
        "author": {"@id": people[0]["@id"]},
        "publisher": {"@id": people[-1]["@id"]},
        "conformsTo": {"@id": PROCESS_RUN_CRATE},
        "hasPart": _refer(map(encode_name, sorted(files))),
        "mentions": _refer(action["@id"] for action in actions),
    }
    profile = {"@id": PROCESS_RUN_CRATE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    metadata = {
        "@id": METADATA,
        "@type": "CreativeWork",
        "conformsTo": {"@id": CRATE},
        "about": {"@id": "./"},
    }
    software = {application["@id"]: application for application in applications}
    return {
        "@context": CONTEXT,
        "@graph": [
            metadata, dataset, profile, *people, license_entity, *software.values(), *actions,
            *(build_file(name, len(files[name])) for name in sorted(files)),
        ],
    }  # fmt: skip


def build_people(author: Author) -> list[Entity]:
    """Return the entities of the person and the organization that ran the cases, as far as they are named."""
    organization: Entity = {"@id": "#organization", "@type": "Organization", "name": author.organization or author.name}
    if author.url:
        organization |= {"@id": author.url, "url": author.url}
    if author.person is None:
        return [organization]
    person: Entity = {"@id": "#author", "@type": "Person", "name": author.person}
    if author.organization is None:
        return [person]
    return [person | {"affiliation": {"@id": organization["@id"]}}, organization]


def build_application(record: RunRecord) -> Entity:
    """Return the software that ran a case: a version of the harness, at the commit that the job recorded."""
    provenance = record.provenance
    version, commit = provenance.get("harness") or "unknown", provenance.get("commit")
    changed = ", with changes that are in no commit" if provenance.get("changed_since_commit") else ""
    url = find_repository_url(commit)
    application: Entity = {
        "@id": f"{url}#gfm-harness-{version}{f'-{commit}' if commit else ''}{'-changed' if changed else ''}",
        "@type": "SoftwareApplication",
        "name": "gfm-harness",
        "softwareVersion": version,
        "description": f"Commit {commit}{changed}." if commit else "The job recorded no commit.",
        "url": url,
    }
    if commit:
        application["identifier"] = f"swh:1:rev:{commit}"
    return application


def build_action(
    record: RunRecord, files: Mapping[str, bytes], root: Path, application: Entity, description: Description
) -> Entity:
    """Return the execution of a case, with its files, times, state and error."""
    case = record.case
    folder = record.folder.relative_to(root).as_posix()
    names = [name for name in files if name.startswith(f"{folder}/")]
    inputs = [name for name in names if PurePosixPath(name).name in INPUTS]
    is_done = record.state == "done"
    where = f"on the system {case.get('system', 'unknown')}, host {record.provenance.get('host') or 'unknown'}"
    action: Entity = {
        "@id": f"#{record.campaign}/{record.folder.name}",
        "@type": "CreateAction",
        "name": f"{record.campaign}/{case.get('name', record.folder.name)}",
        "description": f"Case of the suite {case.get('suite', 'unknown')}: the program {record.program} {where}.",
        "instrument": {"@id": application["@id"]},
        "agent": {"@id": build_people(description.author)[0]["@id"]},
        "object": _refer(map(encode_name, inputs)),
        "result": _refer(map(encode_name, sorted(set(names) - set(inputs)))),
        "actionStatus": f"http://schema.org/{'Completed' if is_done else 'Failed'}ActionStatus",
    }
    if record.start_time_s is not None and record.end_time_s is not None:
        action |= {"startTime": format_time(record.start_time_s), "endTime": format_time(record.end_time_s)}
    if not is_done:
        action["error"] = record.error or f"The case is {record.state}."
    return action


def build_file(name: str, size: int) -> Entity:
    """Return the entity of a file of the bundle."""
    path = PurePosixPath(name)
    return {
        "@id": encode_name(name),
        "@type": "File",
        "name": path.name,
        "encodingFormat": MEDIA_TYPES.get(path.suffix, "text/plain"),
        "contentSize": str(size),
    }


def encode_name(name: str) -> str:
    """Return the name of a file as the path of a URI, which RO-Crate requires of identifiers."""
    return quote(name, errors="surrogateescape")


def format_time(time_s: float) -> str:
    """Return a Unix time in ISO 8601, UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


def _refer(names: Iterable[str]) -> list[Entity] | Entity:
    """Return references to entities: a list, or the only one, as RO-Crate 1.1 recommends."""
    references = [{"@id": name} for name in names]
    return references[0] if len(references) == 1 else references
