"""The checklist of practical reproducibility: each item is answered with the file and line that prove it, or with no.

Source of the items: reports/artifact/checklist.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    """A question of the checklist.

    Attributes:
        evidence: file name (with *) -> the regular expression of the line that proves the item.
        missing: the reason to report if no file proves it.
    """

    asks: str
    evidence: dict[str, str]
    missing: str = "the file that would prove it is not part of this bundle"


class Section(StrictModel):
    """A group of items."""

    title: str
    items: list[Item] = Field(min_length=1)


class Checklist(StrictModel):
    """The content of checklist.yaml."""

    source: str
    sections: list[Section]


@dataclass(frozen=True)
class Answer:
    """The answer to an item; `evidence` is FILE:LINE, FILE if no line is matched, or None if the answer is no."""

    asks: str
    file: str | None
    evidence: str | None
    missing: str


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
                return Answer(item.asks, name, name, item.missing)
            text = files[name].decode(errors="replace")
            match = compiled.search(text)
            if match is not None:
                return Answer(item.asks, name, f"{name}:{text.count(chr(10), 0, match.start()) + 1}", item.missing)
    return Answer(item.asks, None, None, item.missing)


def answer_checklist(files: Mapping[str, bytes]) -> list[tuple[str, Sequence[Answer]]]:
    """Return the title and the answers of each section, from the contents of the bundle's files by name."""
    return [(s.title, [answer_item(item, files) for item in s.items]) for s in load_checklist().sections]


def render_checklist(files: Mapping[str, bytes]) -> str:
    """Return the checklist as Markdown."""
    sections = answer_checklist(files)
    answers = [answer for _, answers in sections for answer in answers]
    template = create_template_environment().get_template("checklist.md.j2")
    return template.render(
        source=load_checklist().source,
        sections=[{"title": title, "items": answers} for title, answers in sections],
        n_items=len(answers),
        n_proven=sum(answer.evidence is not None for answer in answers),
    )
