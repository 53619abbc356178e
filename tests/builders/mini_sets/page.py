"""The page beside the files, written from the table."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, object]

PAGE = """# Small labelled sets

One set for each branch of the model, named after its head; eV, angstrom, eV/angstrom, eV/angstrom^3 (tension
positive). A *sample* is drawn from the head's own dataset; a *stand-in* is other data in its place, with chemistry
like the original's and a level of theory of its own. Every label comes from quantum chemistry, first-principles or
semi-empirical as the level says; none from a machine-learned model. [`sets.yaml`](sets.yaml) holds the whole table:
level, labels, provenance, licence, attribution, what was rejected, and the digest that is checked on every load.

| set | role | structures | level of theory | chemistry |
| --- | --- | --- | --- | --- |
{rows}

`omol25-neutral` and `omol25-non-neutral` are the frames of `omol25` by charge and have no file of their own. A file
is HDF5 with one column per quantity, fixed-point integers whose attribute `decimals` says where the point is:
published numbers are kept to their last digit. `group` names the molecule, reaction or material; a split parts no
group. Energies of GFN-xTB are electronic free energies, and a multiplicity only sets its occupations; those of GPAW
are relative to its atoms. Forces are minus the gradients of the energies.

`python -m tests.builders.mini_sets` remakes the files and this page (extra `labels`; `oc2022` needs GPAW
too).
"""


def format_page(table: Mapping[str, Row]) -> str:
    """Markdown of the sets in the table's order."""
    columns = ("role", "count", "level", "chemistry")
    rows = [f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |" for name, row in table.items()]
    return PAGE.format(rows="\n".join(rows))
