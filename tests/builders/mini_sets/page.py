"""Format the README of the shipped sets from their table."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, object]

PAGE = """# Small labelled sets

There is one set for each head of the model, and it has the name of the head. Units are eV, angstrom, eV/angstrom and
eV/angstrom^3 (tension is positive). A *sample* is drawn from the dataset of the head; a *stand-in* is other data, with
similar chemistry and another level of theory. Every label comes from first-principles or semi-empirical quantum
chemistry, as the level of theory says, and none from a machine-learned model. [`sets.yaml`](sets.yaml) has the whole
table: level, labels, provenance, licence, attribution, rejected structures, and the checksum that is verified whenever
a file is loaded.

| set | role | structures | level of theory | chemistry |
| --- | --- | --- | --- | --- |
{rows}

`omol25-neutral` and `omol25-non-neutral` are the structures of `omol25` without and with a charge; they have no files
of their own. A file is HDF5 with one column per quantity. Numbers are fixed-point integers with the attribute
`decimals`, so that published numbers keep all their digits. `group` names the molecule, reaction or material; splits do
not divide groups. Energies of GFN-xTB are electronic free energies, and the multiplicity only sets its occupations;
energies of GPAW are relative to its atoms. Forces are the negative gradients of the energies.

`python -m tests.builders.mini_sets` rebuilds the files and this page; it needs the extra `labels`, and
`oc2022` also needs GPAW.
"""


def format_page(table: Mapping[str, Row]) -> str:
    """Return the page of the sets, in the order of the table, as Markdown."""
    columns = ("role", "count", "level", "chemistry")
    rows = [f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |" for name, row in table.items()]
    return PAGE.format(rows="\n".join(rows))
