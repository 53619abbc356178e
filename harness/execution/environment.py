"""The commands that make the Python environment in which the jobs of a system run."""

from __future__ import annotations

from harness import __version__
from harness.config import resources
from harness.config.system import Site
from harness.protocol.errors import UsageError

HEAD = """\
#!/usr/bin/env bash
# The Python environment of gfm-harness {version} on {title}; run it once, on a login node.
# {source}
# shellcheck disable=SC1091
set -eo pipefail
"""


def commands(site: Site) -> str:
    """A bash script; raises UsageError if the system's file has no `install` lines."""
    package = str(resources.CLONE) if (resources.CLONE / "pyproject.toml").is_file() else f"gfm-harness=={__version__}"
    lines = site.lines("install", setup={"package": package})
    if not lines:
        raise UsageError(f"system {site.system.name!r} has no `install` lines, so nothing is known of how to set it up")
    source = f"See {site.system.source}" if site.system.source else "From the system's `modules` and `install` lines."
    head = HEAD.format(version=__version__, title=site.system.title, source=source)
    return "\n".join([head, *site.requests(("modules", "install")), *site.lines("modules"), *lines]) + "\n"
