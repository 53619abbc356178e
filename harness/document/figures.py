"""A common style for figures, which are saved as PNG, as SVG, and as a narrow SVG for small screens."""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.scale import LogTransform
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogFormatterMathtext,
    LogFormatterSciNotation,
    NullLocator,
)

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


PIXELS = 96
# Sizes in inches: of figures for small screens, of the narrowest figure that fills a row of the page, and of a legend's
# symbol and of a letter of its labels; and the height of the one panel that represents a figure on the overview.
NARROW_WIDTH, WIDE_WIDTH, SYMBOL_WIDTH, LETTER_WIDTH = 3.7, 7.5, 0.55, 0.062
CARD_HEIGHT = 3.5
# The letters to which labels of ticks are cut in narrow figures, unless this would make them equal.
MAX_TICK_LETTERS = 22


@dataclass(frozen=True)
class Figure:
    """A saved figure: its file name without suffix, its caption, and its sizes in pixels at 96 dpi.

    Attributes:
        narrow_height: the height of the narrow SVG; 0 if there is none.
        has_card: whether there is an SVG of a single panel, for the overview.
    """

    name: str
    caption: str
    width: int
    height: int
    narrow_height: int
    has_card: bool

    @property
    def is_wide(self) -> bool:
        """Whether the figure fills a row of the page by itself."""
        return self.width > PIXELS * WIDE_WIDTH


def make_file_name(name: str) -> str:
    """Return a file name of limited length without slashes; different names give different file names."""
    plain = re.sub(r"[^\w.=+-]+", "-", name, flags=re.ASCII)
    if plain == name and len(name) <= MAX_LETTERS:
        return name
    return f"{plain[:MAX_LETTERS]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def save_figure(
    figure: Any, folder: Path, name: str, caption: str, *, has_narrow: bool = True, card: int | None = None
) -> Figure:
    """Write the figure as PNG, SVG and narrow SVG, close it, and return it.

    Legends are moved above the panels, so that they cover no data.

    Args:
        figure: The figure of matplotlib.
        folder: The folder of figures.
        name: The name, from which that of the files follows.
        caption: The text below the figure.
        has_narrow: Whether the figure can be made narrow; otherwise, small screens scroll it.
        card: The index of the panel that represents the figure on the overview; by default, all panels do.
    """
    name = make_file_name(name)
    for axes in figure.axes:
        set_power_labels(axes.xaxis)
        set_power_labels(axes.yaxis)
    has_layout = isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)
    legend = pop_legends(figure) if has_layout else {}
    add_legend(figure, legend)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_below(folder.parent, f"{folder.name}/{name}.png", picture.getvalue())
    size = tuple(figure.get_size_inches())
    layout = figure.get_layout_engine()
    figure.set_layout_engine(None)  # the SVG has the layout of the PNG, which takes as long as drawing
    write_below(folder.parent, f"{folder.name}/{name}.svg", _format_svg(figure))
    narrow_height = 0.0
    if has_layout and has_narrow:
        figure.set_layout_engine(layout)
        pop_legends(figure)
        make_narrow(figure, legend)
        narrow_height = figure.get_size_inches()[1]
        write_below(folder.parent, f"{folder.name}/narrow/{name}.svg", _format_svg(figure))
        if card is not None:
            pop_legends(figure)
            make_card(figure, legend, card)
            write_below(folder.parent, f"{folder.name}/card/{name}.svg", _format_svg(figure))
    plt.close(figure)
    width, height, narrow = (round(PIXELS * inches) for inches in (*size, narrow_height))
    return Figure(name, caption, width, height, narrow, has_card=bool(narrow) and card is not None)


def _format_svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def pop_legends(figure: Any) -> dict[str, Any]:
    """Remove all legends of a figure, and return their labels with a handle for each."""
    entries: dict[str, Any] = {}
    for owner in (figure, *figure.axes):
        for legend in list(figure.legends) if owner is figure else filter(None, [owner.get_legend()]):
            # the handles in a legend lack the markers of error bars, which those of the axes have
            handles = {} if owner is figure else dict(zip(*reversed(owner.get_legend_handles_labels()), strict=True))
            for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
                entries.setdefault(text.get_text(), handles.get(text.get_text(), handle))
            legend.remove()
    return entries


def add_legend(figure: Any, entries: dict[str, Any]) -> None:
    """Add a legend above the panels, with as many columns as fit."""
    if entries:
        entry_width = SYMBOL_WIDTH + LETTER_WIDTH * max(map(len, entries))
        rows = math.ceil(len(entries) / max(1, int(figure.get_size_inches()[0] / entry_width)))
        columns = math.ceil(len(entries) / rows)
        options: Any = {"loc": "outside upper left", "ncols": columns, "frameon": False, "fontsize": 8}
        figure.legend(entries.values(), entries.keys(), **options)


def make_narrow(figure: Any, legend: dict[str, Any]) -> None:
    """Resize a figure to NARROW_WIDTH, with its panels in one column, or in two if they are many.

    Long names at the vertical axis are cut, names at the horizontal axis that would overlap are turned, and labels and
    titles are broken into lines.
    """
    height = float(figure.get_size_inches()[1])
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None and axes.get_visible()]
    rows, columns = panels[0].get_subplotspec().get_gridspec().get_geometry() if panels else (1, 1)
    if columns > (1 if rows == 1 else 2):
        height *= _arrange_panels(figure, panels, 1 if rows == 1 else 2) / rows
    figure.set_size_inches(NARROW_WIDTH, height)
    add_legend(figure, legend)
    for axes in panels:
        _cut_ticks(axes.yaxis)
    figure.draw_without_rendering()
    for axes in panels:
        labels = [label for label in axes.get_xticklabels() if label.get_text() and label.get_visible()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        if any(left.x1 > right.x0 for left, right in pairwise(boxes)):
            _rename_ticks(axes.xaxis, lambda name: name.replace("\n", " "))
            axes.tick_params(axis="x", rotation=90)
        box = axes.get_window_extent()
        for text, space in ((axes.xaxis.label, box.width), (axes.yaxis.label, box.height), (axes.title, box.width)):
            _break_lines(text, space)


def make_card(figure: Any, legend: dict[str, Any], panel: int) -> None:
    """Remove all panels of a narrow figure but one, and give it the size of a card on the overview."""
    for axes in list(figure.axes)[:panel] + list(figure.axes)[panel + 1 :]:
        axes.remove()
    (axes,) = figure.axes
    axes.set_subplotspec(GridSpec(1, 1, figure=figure)[0])
    axes.tick_params(labelleft=True, labelbottom=True)
    figure.set_size_inches(NARROW_WIDTH, CARD_HEIGHT)
    add_legend(figure, legend)


def _arrange_panels(figure: Any, panels: list[Any], columns: int) -> int:
    """Arrange panels in this number of columns, remove the empty ones, and return the new number of rows."""
    first, used = panels[0], [axes for axes in panels if axes.has_data() or axes.texts]
    for axes in panels:
        if axes not in used:
            axes.remove()
    n_rows = -(-len(used) // columns)
    grid = GridSpec(n_rows, columns, figure=figure)
    for k, axes in enumerate(used):
        axes.set_subplotspec(grid[k // columns, k % columns])
        # panels that share an axis have its labels only at the edge of the figure
        if k % columns == 0 and axes.get_shared_y_axes().joined(axes, first):
            axes.tick_params(axis="y", labelleft=True)
            axes.set_ylabel(axes.get_ylabel() or first.get_ylabel())
        if k + columns >= len(used) and axes.get_shared_x_axes().joined(axes, first):
            axes.tick_params(axis="x", labelbottom=True)
    panels[:] = used
    return n_rows


def _break_lines(text: Any, space: float) -> None:
    """Break a label into lines that fit into a space in pixels."""
    extent = text.get_window_extent()
    length = extent.height if text.get_rotation() == 90 else extent.width
    if length > space:
        text.set_text(textwrap.fill(text.get_text(), max(8, int(len(text.get_text()) * space / length))))


def _rename_ticks(axis: Axis, rename: Callable[[str], str]) -> None:
    """Rename the ticks of an axis if they have fixed places."""
    if isinstance(axis.get_major_locator(), FixedLocator):
        names = [label.get_text() for label in axis.get_ticklabels()]
        if (new := [rename(name) for name in names]) != names:
            axis.set_ticks(axis.get_ticklocs(), labels=new)


def _cut_ticks(axis: Axis) -> None:
    """Cut long names of ticks in the middle, to as few letters as leave different names different."""
    names = {label.get_text() for label in axis.get_ticklabels()}
    for letters in range(MAX_TICK_LETTERS, max(map(len, names), default=0), 4):
        if len({_cut_middle(name, letters) for name in names}) == len(names):
            break
    else:
        return
    _rename_ticks(axis, lambda name: _cut_middle(name, letters))


def _cut_middle(name: str, letters: int) -> str:
    half = letters // 2
    return name if len(name) <= letters else f"{name[:half]}\u2026{name[-half:]}"


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
