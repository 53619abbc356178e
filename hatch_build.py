"""Build hook that writes the JSON schemas of suites and systems next to them, before the wheel includes both."""

from __future__ import annotations

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc, type-arg]
    """Writes the schemas; an editable installation does so too, so that editors find them in a clone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run before the build."""
        sys.path.insert(0, self.root)
        from harness.config import json_schema

        json_schema.write_files()
