"""The periodic table of 18 columns."""

from __future__ import annotations

import re

SYMBOLS: list[str] = re.findall(
    "[A-Z][a-z]?",
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo"
    " Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg"
    " Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og",
)
NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)


def cell_of(z: int) -> tuple[float, int]:
    """Row and column of an atomic number in the table of 18 columns, the f elements below it."""
    period = next(k for k, last in enumerate(NOBLE) if z <= last)
    step, length = z - NOBLE[period - 1], NOBLE[period] - NOBLE[period - 1]
    if length == 32 and 3 <= step <= 17:
        return period + 1.4, step - 1
    return period - 1, step - 1 if step <= min(2, length // 2) else step - 1 + 18 - length
