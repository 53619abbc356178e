"""Rebuild the shipped sets of the tasks: `python -m tests.builders.task_sets [task ...] [--archives DIR]`.

Published values are read from their packages, which pip fetches by name and version and whose sha256 is checked. The
other values are computed here, with every label kept in the cache folder. The file, its row of tasks.yaml and the page
next to it are replaced. The extra `labels` is needed, and the sets for pretraining, whose structures are left out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from harness.reference.datasets.levels import format_versions
from harness.reference.tasks.load import FOLDER, TABLE
from tests.builders.mini_sets.labelling import label_structures, use_one_thread
from tests.builders.task_sets.pack import Decimals, write_set
from tests.builders.task_sets.page import format_page
from tests.builders.task_sets.recipes import RECIPES, Computed, Published
from tests.builders.task_sets.samples import Sample

Row = dict[str, object]
CACHE = Path.home() / ".cache" / "gfm-harness" / "labels"


def build_set(name: str, archives: Path, cache: Path, processes: int) -> Row:
    """Write one set and return its row of the table."""
    recipe = RECIPES[name]
    if isinstance(recipe, Published):
        samples = recipe.make(archives)
        level, rejected, provenance = recipe.level, "none", recipe.source
    else:
        samples, rejected = _compute_samples(name, recipe, cache, processes)
        level = recipe.level.name
        provenance = (
            f"computed by tests.builders.task_sets with {recipe.level.code}; "
            f"{recipe.source}; made with {format_versions(recipe.packages)}"
        )
    digest = write_set(FOLDER / f"{name}.h5", samples, Decimals())
    return {
        "level": level,
        "count": len(samples),
        "rejected": rejected,
        "sha256": digest,
        "provenance": provenance,
    }


def _compute_samples(name: str, recipe: Computed, cache: Path, processes: int) -> tuple[list[Sample], str]:
    structures = recipe.make()
    labelled = label_structures(structures, recipe.level, cache / f"task-{name}.jsonl", processes)
    samples = recipe.finish(labelled.structures)
    reasons = dict(labelled.rejected)
    if n_excluded := len(labelled.structures) - len(samples):
        reasons["outside the range kept"] = n_excluded
    return samples, ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "none"


def main() -> None:
    """Build the sets named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.builders.task_sets", description="Rebuild task sets.")
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"one of {', '.join(RECIPES)}; all if none is given")
    parser.add_argument("--archives", type=Path, help="folder of downloaded packages; a temporary one if not given")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of computed labels ({CACHE})")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="number of labelling processes (all cores)"
    )
    options = parser.parse_args()
    use_one_thread()
    if unknown := sorted(set(options.tasks) - RECIPES.keys()):
        parser.error(f"no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    yaml = YAML()
    yaml.width = 120
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.tasks or RECIPES:
            row = build_set(name, options.archives or Path(scratch), options.cache, options.processes)
            table = yaml.load(FOLDER / TABLE)
            table[name].update(row)
            yaml.dump(table, FOLDER / TABLE)
            if all("count" in row for row in table.values()):
                (FOLDER / "README.md").write_text(format_page(table))
            size = (FOLDER / f"{name}.h5").stat().st_size
            print(f"{name}: {row['count']} structures, {size} bytes, rejected: {row['rejected']}")


if __name__ == "__main__":
    main()
