"""Build hook that writes the JSON schemas of suites and systems next to them, before the wheel includes both."""

from __future__ import annotations

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc, type-arg]
    """A build hook that also runs for an editable installation, so that editors find the schemas in a clone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the schemas; hatchling calls this method before the build."""
        sys.path.insert(0, self.root)
        from harness.config import json_schema

        json_schema.write_files()
