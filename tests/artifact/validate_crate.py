"""Validate a crate with roc-validator, without a network: python validate_crate.py CRATE prints a line for each issue.

The context below has the terms of https://w3id.org/ro/crate/1.1/context that crates of the harness use; any other term
would be unknown, which is an issue.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import requests
from rocrate_validator import models, services
from rocrate_validator.utils.http import HttpRequester

URL = "https://w3id.org/ro/crate/1.1/context"
SCHEMA = "http://schema.org/"
TERMS = (
    "CreateAction", "CreativeWork", "Dataset", "Organization", "Person", "SoftwareApplication",
    "about", "actionStatus", "affiliation",
    "agent", "author", "contentSize", "datePublished", "description", "encodingFormat", "endTime", "error", "hasPart",
    "identifier", "instrument", "license", "mentions", "name", "object", "publisher", "result", "softwareVersion",
    "startTime", "url", "version",
)  # fmt: skip
CONTEXT = {term: SCHEMA + term for term in TERMS} | {
    "File": f"{SCHEMA}MediaObject",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
}


def answer(_: HttpRequester, url: str, **options: Any) -> requests.Response:
    response = requests.Response()
    response.status_code = 200 if url == URL else 404
    response.headers["Content-Type"] = "application/ld+json"
    response._content = json.dumps({"@context": CONTEXT}).encode()
    return response


def main(crate: str) -> None:
    HttpRequester.get = answer
    settings = services.ValidationSettings(
        rocrate_uri=models.URI(crate),
        profile_identifier="process-run-crate",
        requirement_severity=models.Severity.RECOMMENDED,
    )
    result = services.validate(settings)
    for issue in result.get_issues():
        print(f"{issue.severity.name}: {issue.check.identifier}: {issue.message} {issue.violatingEntity or ''}")
    print(f"{len(result.executed_checks)} checks")


if __name__ == "__main__":
    main(*sys.argv[1:])
