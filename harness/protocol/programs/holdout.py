"""The rule by which structures are held out of training, so that errors outside the training sets can be measured."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from harness.protocol.errors import did_you_mean
from harness.protocol.parameters import ParameterGroup

_PERIODIC_TABLE = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo"
    " Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg"
    " Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
SYMBOLS = tuple(_PERIODIC_TABLE.split())
Chemistry = Literal["oxides", "halides", "chalcogenides", "pnictides", "intermetallics", "sulfur-organics"]
Family = Literal["molecules", "slabs", "crystals", "elements", "binaries", "ternaries", "large"]


def check_symbol(symbol: str) -> str:
    """Return the symbol unchanged; raise ValueError if there is no such element."""
    if symbol not in SYMBOLS:
        raise ValueError(f"{symbol!r} is not the symbol of an element{did_you_mean(symbol, SYMBOLS)}")
    return symbol


def check_pair(pair: tuple[str, str]) -> tuple[str, str]:
    """Return the pair unchanged; raise ValueError if both elements are the same."""
    if pair[0] == pair[1]:
        raise ValueError(f"expected two different elements, got {pair[0]} twice")
    return pair


Symbol = Annotated[str, AfterValidator(check_symbol)]
Pair = Annotated[tuple[Symbol, Symbol], AfterValidator(check_pair)]


class Holdout(ParameterGroup):
    """A rule that holds out the structures which match at least one entry of the first four lists, and files.

    The structures of the files are new; they are evaluated as those that the rule holds out.
    """

    elements: tuple[Symbol, ...] = ()
    """Structures with at least one of these elements."""
    pairs: tuple[Pair, ...] = ()
    """Structures with both elements of one of these pairs."""
    chemistries: tuple[Chemistry, ...] = ()
    """Structures of one of these classes of composition."""
    families: tuple[Family, ...] = ()
    """Structures of one of these classes, by periodic directions, number of elements, or size (large: at least 40
    atoms)."""
    datasets: tuple[str, ...] | None = Field(default=None)
    """Datasets from whose training and validation sets the structures are left out; null: all of them; an empty list:
    no dataset, for a control that is evaluated on the same structures."""
    files: dict[str, str] = Field(default_factory=dict)
    """For a head (such as OMat24), a file of new structures with energies (eV) and, optionally, forces (eV/angstrom) at
    the level of theory of this head, in a format that ASE reads. They are not compared with the training structures."""

    @model_validator(mode="after")
    def check_rule(self) -> Self:
        """Raise ValueError if all given lists are empty, without a file; lists from expressions are unknown here."""
        lists = self.model_fields_set & {"elements", "pairs", "chemistries", "families"}
        if lists and not (self.has_rule or self.files):
            raise ValueError("expected at least one of elements, pairs, chemistries and families")
        return self

    @property
    def has_rule(self) -> bool:
        """Whether some structures of the datasets may satisfy the rule; otherwise only files are evaluated."""
        return bool(self.elements or self.pairs or self.chemistries or self.families)

    def describe(self) -> str:
        """Return the rule as text, `element S, pair Li-O`."""
        parts = [f"element {symbol}" for symbol in self.elements]
        parts += [f"pair {'-'.join(pair)}" for pair in self.pairs]
        return ", ".join([*parts, *self.chemistries, *(f"family {name}" for name in self.families)])
