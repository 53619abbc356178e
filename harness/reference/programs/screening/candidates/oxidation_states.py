"""Common oxidation states and electronegativities of the elements, and which elements are metals.

Oxidation states: a selection of those that occur in solids, from N. N. Greenwood and A. Earnshaw, Chemistry of the
Elements, 2nd ed., Butterworth-Heinemann (1997). It includes some of anions with bonds among themselves (-1 in pyrite
and skutterudite), but not -1 of oxygen in peroxides, which would balance MgO2 or NaO in any prototype.
Electronegativities: Pauling's scale, A. L. Allred, J. Inorg. Nucl. Chem. 17, 215 (1961), and for elements without a
value there, CRC Handbook of Chemistry and Physics.
"""

from __future__ import annotations

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array

N_ROWS = MAX_ATOMIC_NUMBER + 1  # rows of the tables, whose index is the atomic number
LARGEST_STATE = 7
# symbol, electronegativity, oxidation states
TABLE = """
H  2.20 -1 1
Li 0.98 1
Be 1.57 2
B  2.04 3
C  2.55 -4 -1 2 4
N  3.04 -3 3 5
O  3.44 -2
F  3.98 -1
Na 0.93 1
Mg 1.31 2
Al 1.61 3
Si 1.90 -4 4
P  2.19 -3 -1 3 5
S  2.58 -2 -1 4 6
Cl 3.16 -1 1 3 5 7
K  0.82 1
Ca 1.00 2
Sc 1.36 3
Ti 1.54 2 3 4
V  1.63 2 3 4 5
Cr 1.66 2 3 4 6
Mn 1.55 2 3 4 7
Fe 1.83 2 3
Co 1.88 2 3
Ni 1.91 2 3
Cu 1.90 1 2
Zn 1.65 2
Ga 1.81 1 3
Ge 2.01 -4 2 4
As 2.18 -3 -1 3 5
Se 2.55 -2 -1 4 6
Br 2.96 -1 1 3 5
Kr 3.00 2
Rb 0.82 1
Sr 0.95 2
Y  1.22 3
Zr 1.33 4
Nb 1.60 3 4 5
Mo 2.16 2 3 4 5 6
Tc 1.90 4 7
Ru 2.20 3 4
Rh 2.28 3
Pd 2.20 2 4
Ag 1.93 1
Cd 1.69 2
In 1.78 1 3
Sn 1.96 -4 2 4
Sb 2.05 -3 -1 3 5
Te 2.10 -2 -1 4 6
I  2.66 -1 1 3 5 7
Xe 2.60 2 4 6
Cs 0.79 1
Ba 0.89 2
La 1.10 3
Ce 1.12 3 4
Pr 1.13 3 4
Nd 1.14 3
Pm 1.13 3
Sm 1.17 2 3
Eu 1.20 2 3
Gd 1.20 3
Tb 1.10 3 4
Dy 1.22 3
Ho 1.23 3
Er 1.24 3
Tm 1.25 2 3
Yb 1.10 2 3
Lu 1.27 3
Hf 1.30 4
Ta 1.50 4 5
W  2.36 4 5 6
Re 1.90 4 6 7
Os 2.20 4
Ir 2.20 3 4
Pt 2.28 2 4
Au 2.54 -1 1 3
Hg 2.00 1 2
Tl 1.62 1 3
Pb 2.33 -4 2 4
Bi 2.02 -3 3 5
Po 2.00 -2 2 4
At 2.20 -1 1
Fr 0.70 1
Ra 0.90 2
Ac 1.10 3
Th 1.30 4
Pa 1.50 4 5
U  1.38 3 4 5 6
Np 1.36 3 4 5 6
Pu 1.28 3 4
Am 1.30 3
Cm 1.30 3
"""
NOBLE_GASES = "He Ne Ar Kr Xe Rn"
NONMETALS = "H C N O F P S Cl Se Br I At"
METALLOIDS = "B Si Ge As Sb Te"


def _mark(symbols: str) -> NDArray[np.bool_]:
    mask = np.zeros(N_ROWS, dtype=bool)
    mask[[atomic_numbers[s] for s in symbols.split()]] = True
    return mask


def _read_table() -> tuple[NDArray[np.bool_], Array]:
    states = np.zeros((N_ROWS, 2 * LARGEST_STATE + 1), dtype=bool)
    electronegativity = np.full(N_ROWS, np.nan)
    for line in TABLE.strip().splitlines():
        symbol, value, *charges = line.split()
        states[atomic_numbers[symbol], np.array(charges, dtype=int) + LARGEST_STATE] = True
        electronegativity[atomic_numbers[symbol]] = float(value)
    return states, electronegativity


# [119, 15] whether an element has each oxidation state -7 .. 7, and [119] Pauling's electronegativity, NaN if unknown
STATES, ELECTRONEGATIVITY = _read_table()
IS_NOBLE_GAS = _mark(NOBLE_GASES)
# All other elements up to curium are metals.
IS_METAL = ~_mark(f"{NOBLE_GASES} {NONMETALS} {METALLOIDS}") & (np.arange(N_ROWS) >= 1) & (np.arange(N_ROWS) <= 96)
