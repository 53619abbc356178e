"""Small molecules of most elements, with charges and open shells (QCML)."""

from __future__ import annotations

from tests.builders.mini_sets.chemistry.central import CentralMolecule

# SMILES, charge and multiplicity (2S + 1); the charge can differ from that of the SMILES, as in ionized methane.
QCML_SMILES = (
    *(("C", 0, 1), ("N", 0, 1), ("O", 0, 1), ("CC", 0, 1), ("C=C", 0, 1), ("C#C", 0, 1), ("C=O", 0, 1), ("CO", 0, 1)),
    *(("C#N", 0, 1), ("CF", 0, 1), ("CCl", 0, 1), ("CBr", 0, 1), ("CS", 0, 1), ("CP", 0, 1), ("C[SiH3]", 0, 1)),
    *(("N#N", 0, 1), ("O=C=O", 0, 1), ("O=S=O", 0, 1), ("S=C=S", 0, 1), ("O=C=S", 0, 1), ("SS", 0, 1), ("OCl", 0, 1)),
    *(("O=O", 0, 3), ("[CH2]", 0, 3), ("[CH3]", 0, 2), ("[NH2]", 0, 2), ("[OH]", 0, 2), ("[SH]", 0, 2)),
    *(
        ("[N]=O", 0, 2),
        ("O[O]", 0, 2),
        ("[SiH3]", 0, 2),
        ("[PH2]", 0, 2),
        ("C[CH2]", 0, 2),
        ("C[O]", 0, 2),
        ("[CH]=O", 0, 2),
    ),
    *(("[NH4+]", 1, 1), ("[OH3+]", 1, 1), ("[CH3+]", 1, 1), ("[OH-]", -1, 1), ("[C-]#N", -1, 1), ("[SH-]", -1, 1)),
    *(("[NH2-]", -1, 1), ("[CH3-]", -1, 1), ("O=[CH+]", 1, 1), ("N#[O+]", 1, 1), ("[O-]N=O", -1, 1), ("C[O-]", -1, 1)),
    *(("C[NH3+]", 1, 1), ("[O-]C=O", -1, 1), ("C", 1, 2), ("O", 1, 2), ("N", 1, 2), ("O=O", -1, 2), ("C=C", 1, 2)),
)
# A centre, its ligand and their number; then the charge, and the multiplicity if it is not the lowest possible.
QCML_CENTRAL = (
    *(CentralMolecule(a, "H", 1) for a in ("Li", "Na", "K", "Rb", "Cs", "Cu", "Ag", "Au", "F", "Cl", "Br", "I", "Tl")),
    *(CentralMolecule(a, "F", 1) for a in ("Li", "Na", "K", "Ag", "In", "Cl", "Br", "I")),
    *(CentralMolecule(a, "Cl", 1) for a in ("Li", "K", "Rb", "Cs", "Cu", "Au", "Ga", "Br")),
    *(CentralMolecule(a, "H", 2) for a in ("Be", "Mg", "Ca", "Zn", "Cd", "Hg", "S", "Se", "Te")),
    *(CentralMolecule(a, "F", 2) for a in ("Be", "Mg", "Ca", "Sr", "Ba", "Zn", "Ge", "Sn", "Pb", "Xe", "Kr", "O")),
    *(CentralMolecule(a, "H", 3) for a in ("B", "Al", "Ga", "In", "P", "As", "Sb", "Bi")),
    *(CentralMolecule(a, "F", 3) for a in ("B", "Al", "Sc", "Y", "La", "N", "P", "As", "Sb")),
    *(CentralMolecule(a, "H", 4) for a in ("Si", "Ge", "Sn", "Pb", "Ti", "Zr", "Hf")),
    *(
        CentralMolecule("B", "H", 4, -1),
        CentralMolecule("Al", "H", 4, -1),
        CentralMolecule("P", "H", 4, 1),
        CentralMolecule("S", "H", 3, 1),
    ),
    *(
        CentralMolecule("B", "F", 4, -1),
        CentralMolecule("Xe", "F", 1, 1),
        CentralMolecule("Ag", "H", 2, -1),
        CentralMolecule("Zn", "F", 3, -1),
    ),
    *(
        CentralMolecule("Os", "O", 4),
        CentralMolecule("Ru", "O", 4),
        CentralMolecule("Mn", "O", 4, -1),
        CentralMolecule("Tc", "O", 4, -1),
    ),
    *(
        CentralMolecule("Re", "O", 4, -1),
        CentralMolecule("Cr", "O", 3),
        CentralMolecule("Mo", "O", 3),
        CentralMolecule("W", "O", 3),
    ),
    *(CentralMolecule("V", "O", 1, 0, 4), CentralMolecule("Nb", "O", 1, 0, 4), CentralMolecule("Ta", "O", 1, 0, 2)),
    *(CentralMolecule("Mn", "H", 1, 0, 7), CentralMolecule("Pd", "O", 1, 0, 3), CentralMolecule("Ni", "H", 1, 0, 2)),
    *(CentralMolecule("Pt", "O", 1, 0, 3), CentralMolecule("Rh", "H", 1, 0, 3)),
)
# Centres, their ligand, the number of ligands, and the charge; molecules have no or one unpaired electron.
SERIES = (
    *(("Na Rb Cs Cu Au Tl", "F", 1, 0), ("Na Ag F In Tl I", "Cl", 1, 0), ("Li Na K Rb Cs Cu Ag Au Tl I", "Br", 1, 0)),
    *(("Li Na K Rb Cs Ag Tl", "I", 1, 0), ("Ga In B Al", "H", 1, 0), ("B Al Ga", "F", 1, 0), ("B Al", "Cl", 1, 0)),
    *(("Sr Ba Ge Sn Pb Si", "H", 2, 0), ("Cd Hg S Se Te Si", "F", 2, 0), ("Be Mg Ca Sr Ba Zn Cd Hg", "Cl", 2, 0)),
    *(("S Se Te O Si Ge Sn Pb", "Cl", 2, 0), ("Be Mg Ca Zn Cd Hg Sn Pb", "Br", 2, 0), ("Mg Zn Hg", "I", 2, 0)),
    *(("Sc Y La", "H", 3, 0), ("Ga In Tl Bi Cl Br", "F", 3, 0), ("B Al Ga In Sc Y La N P As Sb Bi", "Cl", 3, 0)),
    *(("B Al P As", "Br", 3, 0), ("Si Ge Sn Pb Ti Zr Hf S Se Xe", "F", 4, 0), ("Si Ge Sn Pb Ti Zr Hf", "Cl", 4, 0)),
    *(("P As Sb Bi V Nb Ta Br I", "F", 5, 0), ("Nb Ta P", "Cl", 5, 0), ("Be Mg Ca Sr Ba Si Ge Sn Zn Cd", "O", 1, 0)),
    *(("Si Ge Ti Zr Hf Se Te", "O", 2, 0), ("Ga In", "H", 4, -1), ("As Sb N", "H", 4, 1), ("Se Te O", "H", 3, 1)),
    *(("Si Ge Sn Pb", "H", 3, -1), ("Si Ge Sn C", "H", 3, 1), ("F Cl Br I", "H", 2, 1), ("N P As", "H", 2, -1)),
    *(("Cu Au", "H", 2, -1), ("Se Te", "H", 1, -1), ("Be Mg Zn", "H", 3, -1), ("Al Ga In", "F", 4, -1)),
    *(("B Al Ga In", "Cl", 4, -1), ("Cu Ag Au I", "Cl", 2, -1), ("P As", "F", 4, 1), ("Cl Br I", "O", 4, -1)),
    *(("Cl Br I", "O", 3, -1), ("Cl Br I", "O", 1, -1), ("Zn Cd Hg Mg Be", "Cl", 3, -1), ("Mg Ca Zn", "F", 3, -1)),
    *(("Ca Sr Ba Mg", "F", 1, 1), ("Sc Y La", "F", 2, 1), ("Be Mg Ca Zn Cd Hg", "H", 1, 0)),
    *(("Ge Sn P As", "H", 3, 0), ("S Se Te", "H", 1, 0), ("P As", "H", 2, 0), ("Si Ge", "F", 3, 0)),
    *(("N P", "F", 2, 0), ("Cl Br", "O", 2, 0), ("Kr", "F", 1, 1)),
)
# Neutral molecules without unpaired electrons.
CLOSED_SHELL_SMILES = (
    *("CI", "FC(F)F", "FC(F)(F)F", "ClCCl", "ClC(Cl)Cl", "BrCBr", "FCCl", "C=CF", "C=CCl", "C#CF", "CCF", "CCCl"),
    *("CSC", "CSS", "CCS", "C=S", "O=CS", "NC=S", "CPC", "CP(C)C", "PP", "C=P", "C#P", "CP=O", "OP=O", "CBC", "NB"),
    *("OBO", "C[SiH2]C", "C[SiH2]F", "F[SiH2]F", "O[SiH3]", "N[SiH3]", "[SiH3][SiH3]", "C[GeH3]", "C[SnH3]", "C[Se]C"),
    *("O=S=S", "O=S(=O)=O", "O=S(F)F", "CS=O", "NS", "NCl", "ClCl", "BrBr", "II", "FF", "ClBr", "OF", "OBr", "OI"),
    *("O=NF", "O=NCl", "FN=NF", "FNF", "N#CF", "N#CCl", "N#CBr", "N#CC#N", "O=C=C=O", "S=C=C", "O=CF", "O=CCl"),
    *("ClC(=O)Cl", "FC(=O)F", "C[Mg]C", "C[Zn]C", "C[Hg]C", "C[Be]C", "CC=C", "CC#N", "NN", "OO", "CN", "N=C=S"),
)
# Further species, of which the mini set has fewer frames than of those above.
QCML_MORE_SMILES = tuple((smiles, 0, 1) for smiles in CLOSED_SHELL_SMILES)
QCML_MORE_CENTRAL = tuple(
    species
    for centres, ligand, count, charge in SERIES
    for species in (CentralMolecule(centre, ligand, count, charge) for centre in centres.split())
    if species not in QCML_CENTRAL
)
