"""The checklist of practical reproducibility: each item is answered with the file and line that prove it, or with "no".

Source of the items: reports/artifact/checklist.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import Field

from harness.artifact.appendix import create_template_environment
from harness.config import resources
from harness.config.document import validate
from harness.config.yaml_loader import load_yaml
from harness.protocol.types import StrictModel
from harness.results.checksums import is_text


class Item(StrictModel):
    """An item of the checklist.

    Attributes:
        requirement: what a bundle must contain.
        evidence: file name (with *) -> the regular expression of the line that proves the item; if it is empty, the
            file itself does.
        missing: the reason to report if no file proves it.
    """

    requirement: str
    evidence: dict[str, str]
    missing: str = "the file that would prove it is not part of this bundle"


class Section(StrictModel):
    """A titled group of questions of the checklist, in the order of the file."""

    title: str
    items: list[Item] = Field(min_length=1)


class Checklist(StrictModel):
    """The content of checklist.yaml."""

    source: str
    sections: list[Section]


@dataclass(frozen=True)
class Answer:
    """The answer to an item.

    Attributes:
        item: the item.
        file: the file that proves it; None if the answer is no.
        evidence: FILE:LINE; FILE if the file itself proves the item, or is not a text; None if the answer is no.
    """

    item: Item
    file: str | None = None
    evidence: str | None = None


def load_checklist() -> Checklist:
    """Return the shipped checklist."""
    return validate(load_yaml(resources.get_resource_dir("reports") / "artifact" / "checklist.yaml"), Checklist)


def answer_item(item: Item, files: Mapping[str, bytes]) -> Answer:
    """Return the answer to an item, with the first place in the files that proves it."""
    for pattern, expression in item.evidence.items():
        compiled = re.compile(expression, re.MULTILINE)
        for name in sorted(files):
            if not fnmatchcase(name, pattern):
                continue
            if not expression or not is_text(files[name]):
                return Answer(item, name, name)
            text = files[name].decode(errors="replace")
            match = compiled.search(text)
            if match is not None:
                return Answer(item, name, f"{name}:{text.count(chr(10), 0, match.start()) + 1}")
    return Answer(item)


def render_checklist(files: Mapping[str, bytes]) -> str:
    """Return the checklist as Markdown, answered from the contents of the bundle's files by name."""
    checklist = load_checklist()
    sections = {section.title: [answer_item(item, files) for item in section.items] for section in checklist.sections}
    answers = [answer for section in sections.values() for answer in section]
    template = create_template_environment().get_template("checklist.md.j2")
    return template.render(
        source=checklist.source,
        sections=sections,
        n_items=len(answers),
        n_proven=sum(answer.file is not None for answer in answers),
    )
