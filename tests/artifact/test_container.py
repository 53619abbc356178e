"""Both container files install and run the two commands of the README."""

from __future__ import annotations

import re

from tests.conftest import ROOT

FOLDER = ROOT / "systems" / "container"
README = (ROOT / "README.md").read_text()


def read_instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile with their arguments."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Containerfile").read_text(), flags=re.MULTILINE)
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines()]


def read_sections() -> dict[str, list[str]]:
    """Return the lines of each section of the Apptainer definition; the header is the section ''."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in (FOLDER / "gfm-harness.def").read_text().splitlines():
        if line.startswith("%"):
            current = line[1:]
            sections[current] = []
        elif line.strip() and not line.strip().startswith("#"):
            sections[current].append(line.strip())
    return sections


def test_container_file_runs_the_commands_of_the_readme() -> None:
    instructions = read_instructions()
    assert {name for name, _ in instructions} <= {"FROM", "RUN", "ARG", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}
    assert instructions[0][0] == "FROM"
    arguments = dict(instructions)
    assert arguments["ENTRYPOINT"] == '["python3", "-m", "nox", "-s"]'
    assert arguments["CMD"] == '["reproduce"]'
    for session in ("reproduce", "tests"):
        assert f"python3 -m nox -s {session}" in README
        assert f"gfm-harness {session}" in (FOLDER / "Containerfile").read_text()


def test_apptainer_definition_has_the_steps_of_the_container_file() -> None:
    sections = read_sections()
    assert set(sections) == {"", "files", "post", "runscript", "test", "labels"}
    instructions = read_instructions()
    image = next(value for name, value in instructions if name == "FROM")
    assert sections[""] == ["Bootstrap: docker", f"From: {image}"]
    steps = [value for name, value in instructions if name == "RUN"]
    assert [step for step in steps if step not in sections["post"]] == []
    folder = next(value for name, value in instructions if name == "WORKDIR")
    assert sections["files"] == [f". {folder}"]
    assert sections["runscript"] == [f"cd {folder}", 'exec python3 -m nox -s "${@:-reproduce}"']
    index = next(value for name, value in instructions if name == "ARG")
    assert f"export {index}" in sections["post"]
    assert index.split("=", 1)[1] in README
