"""Compiled code of other versions of the operators is not used."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch

from harness.reference.ops.compiler import FOLDER, TESTED_VERSION, configure_compiler, hash_sources
from tests.conftest import ROOT


def test_the_tag_changes_with_the_derivative_of_an_operator(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FOLDER, tmp_path / "ops", ignore=shutil.ignore_patterns("__pycache__")))
    assert hash_sources(copy) == hash_sources(FOLDER)
    (copy / "messages.py").write_text((copy / "messages.py").read_text() + "\n")
    assert hash_sources(copy) != hash_sources(FOLDER)


def test_torch_has_the_tag_once() -> None:
    for _ in range(2):
        configure_compiler()
    assert torch.compiler.config.cache_key_tag.count(hash_sources(FOLDER)) == 1


def test_the_version_of_torch_is_the_one_whose_internals_are_tested() -> None:
    """Whoever changes the version in constraints.txt runs test_kernel_libraries.py and changes TESTED_VERSION."""
    pinned = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1].startswith(TESTED_VERSION)
