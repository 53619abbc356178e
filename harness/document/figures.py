"""A common style for figures, which are saved as SVG and PNG."""

from __future__ import annotations

import hashlib
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.scale import LogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterMathtext, LogFormatterSciNotation, NullLocator

from harness.host.files import write_below

# The length to which file names are cut.
MAX_LETTERS = 120
SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain dollar signs
    "svg.hashsalt": "gfm-harness",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Figure:
    """A saved figure: its file name without suffix, caption, and SVG source."""

    name: str
    caption: str
    svg: str


def make_file_name(name: str) -> str:
    """Return a file name of limited length without slashes; different names give different file names."""
    plain = re.sub(r"[^\w.=+-]+", "-", name, flags=re.ASCII)
    if plain == name and len(name) <= MAX_LETTERS:
        return name
    return f"{plain[:MAX_LETTERS]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def save_figure(figure: Any, folder: Path, name: str, caption: str) -> Figure:
    """Write the figure as PNG and SVG, close it, and return it."""
    name = make_file_name(name)
    for axes in figure.axes:
        set_power_labels(axes.xaxis)
        set_power_labels(axes.yaxis)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_below(folder.parent, f"{folder.name}/{name}.png", picture.getvalue())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = text.getvalue()
    write_below(folder.parent, f"{folder.name}/{name}.svg", svg)
    return Figure(name, caption, svg[svg.index("<svg") :])


class PowerFormatter(LogFormatterSciNotation):
    """A formatter that labels powers with superscripts, since STYLE turns off the parsing of math in text."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick, for example `10⁻³`, or an empty string."""
        label = super().__call__(x, pos).removeprefix(r"$\mathdefault{").removesuffix("}$").replace(r"\times", "\u00d7")
        return re.sub(r"\^\{(.*)\}", lambda power: power[1].translate(SUPERSCRIPTS), label)


def set_power_labels(axis: Axis) -> None:
    """Label a logarithmic axis with powers, unless it has custom labels."""
    transform = axis.get_transform()
    if not isinstance(transform, LogTransform):
        return
    for formatter, set_formatter in (
        (axis.get_major_formatter(), axis.set_major_formatter),
        (axis.get_minor_formatter(), axis.set_minor_formatter),
    ):
        if isinstance(formatter, LogFormatterMathtext):
            set_formatter(PowerFormatter(transform.base))


def set_plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Set at most six ticks, labelled without exponents, between the ends of a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,), (0.1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= 6:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x) if x >= 1000 else f"{x:g}"))


def format_count(count: float) -> str:
    """Return a count with at most three digits: `134M`, `9.8M`, `69k`, `460`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            scaled = count / size
            return f"{scaled:.0f}{letter}" if scaled >= 9.95 else f"{scaled:.1f}{letter}"
    return f"{count:.0f}" if count >= 9.95 else f"{count:.2g}"
