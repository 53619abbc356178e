"""Oligomers of common polymers, capped with hydrogen (OPoly2026)."""

from __future__ import annotations

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.geometry import build_structure, compute_closest_ratio, embed_smiles, make_rng, rattle

# repeat unit as SMILES from head to tail; hydrogens cap both ends
UNITS = {
    "polyethylene": "CC",
    "polypropylene": "CC(C)",
    "polyisobutylene": "CC(C)(C)",
    "polystyrene": "CC(c1ccccc1)",
    "poly(vinyl chloride)": "CC(Cl)",
    "poly(vinylidene fluoride)": "CC(F)(F)",
    "polytetrafluoroethylene": "C(F)(F)C(F)(F)",
    "poly(vinyl alcohol)": "CC(O)",
    "poly(vinyl acetate)": "CC(OC(C)=O)",
    "polyacrylonitrile": "CC(C#N)",
    "poly(acrylic acid)": "CC(C(=O)O)",
    "polyacrylamide": "CC(C(N)=O)",
    "poly(methyl acrylate)": "CC(C(=O)OC)",
    "poly(methyl methacrylate)": "CC(C)(C(=O)OC)",
    "polybutadiene": "CC=CC",
    "polyisoprene": "CC(C)=CC",
    "polychloroprene": "CC(Cl)=CC",
    "poly(ethylene oxide)": "CCO",
    "polyoxymethylene": "CO",
    "poly(propylene oxide)": "CC(C)O",
    "polyglycolide": "OCC(=O)",
    "polylactide": "OC(C)C(=O)",
    "polycaprolactone": "OCCCCCC(=O)",
    "poly(ethylene terephthalate)": "OCCOC(=O)c1ccc(cc1)C(=O)",
    "nylon 6": "NCCCCCC(=O)",
    "nylon 4": "NCCCC(=O)",
    "polyglycine": "NCC(=O)",
    "polyalanine": "NC(C)C(=O)",
    "poly(dimethylsiloxane)": "O[Si](C)(C)",
    "poly(phenylene oxide)": "Oc1ccc(cc1)",
    "poly(phenylene sulfide)": "Sc1ccc(cc1)",
    "polythiophene": "c1sc(cc1)",
    "polypyrrole": "c1[nH]c(cc1)",
    "polyaniline": "Nc1ccc(cc1)",
    "polyacetylene": "C=C",
    "polyurea": "NCCNC(=O)",
    "polyurethane": "OCCOC(=O)NCCNC(=O)",
    "poly(vinyl pyrrolidone)": "CC(N1CCCC1=O)",
    "polyethyleneimine": "CCN",
    "polycarbonate": "OCCOC(=O)",
}
# SMILES adds no hydrogen to an atom in brackets, so this chain ends in methyl.
ENDS = {"poly(dimethylsiloxane)": "C"}
LENGTHS = (2, 3, 4, 6)
MAX_ATOMS = 70


def make_opoly2026(count: int = 640) -> list[Structure]:
    """Return oligomers of each polymer: conformers of each length, near the force field's minimum and further away."""
    result: list[Structure] = []
    for name, unit in UNITS.items():
        for length in LENGTHS:
            conformers = embed_smiles(unit * length + ENDS.get(name, ""), 2, 13)
            if not conformers or len(conformers[0]) > MAX_ATOMS:
                continue
            for k, atoms in enumerate(conformers):
                for frame, displacement in enumerate((0.03, 0.09)):
                    moved = rattle(atoms, make_rng(name, length, k, frame), displacement)
                    if compute_closest_ratio(moved) > 0.62:
                        result.append(build_structure(moved, f"{name} {length}/{k}/{frame}", name, 0, 1))
    return result[:count]
