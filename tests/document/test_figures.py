"""Figures stay readable: legends cover no data, and narrow figures keep every panel, label and line."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from harness.document.figures import (
    NARROW_WIDTH,
    STYLE,
    add_legend,
    make_narrow,
    pop_legends,
    save_figure,
)


def draw(rows: int, columns: int, **options: Any) -> Any:
    figure, grid = plt.subplots(rows, columns, figsize=(8.6, 3.6), layout="constrained", squeeze=False, **options)
    for k, axes in enumerate(grid.flat):
        axes.errorbar([1, 2, 3], [1, 2 + k, 1], yerr=[1, 1, 1], marker="o", label="measured")
        axes.plot([1, 3], [1, 1], label=f"line {k % 2}")
        axes.legend()
    return figure


def list_boxes(figure: Any) -> list[Any]:
    figure.draw_without_rendering()
    return [axes.get_window_extent() for axes in figure.axes]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 2), (2, 4)])
def test_one_legend_with_all_labels_is_outside_of_all_panels(rows: int, columns: int) -> None:
    with mpl.rc_context(STYLE):
        figure = draw(rows, columns)
        entries = pop_legends(figure)
        assert set(entries) == {"measured", "line 0", *(["line 1"] if rows * columns > 1 else [])}
        assert not any(axes.get_legend() for axes in figure.axes)
        for narrow in (False, True):
            if narrow:
                pop_legends(figure)
                make_narrow(figure, entries)
            else:
                add_legend(figure, entries)
            boxes = list_boxes(figure)
            (legend,) = figure.legends
            frame = legend.get_window_extent()
            assert {text.get_text() for text in legend.get_texts()} == set(entries)
            assert not any(frame.overlaps(box) for box in boxes)
            assert frame.x1 <= figure.bbox.x1 + 1
        plt.close(figure)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 2), (2, 4)])
def test_narrow_figure_keeps_every_panel(rows: int, columns: int) -> None:
    with mpl.rc_context(STYLE):
        figure = draw(rows, columns, sharey=True)
        figure.axes[0].set_ylabel("errors")
        before = [(axes, len(axes.lines)) for axes in figure.axes]
        make_narrow(figure, {})
        boxes = list_boxes(figure)
        assert [(axes, len(axes.lines)) for axes in figure.axes] == before
        assert figure.get_size_inches()[0] == NARROW_WIDTH
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        assert min(box.width for box in boxes) > 0.3 * 100 * NARROW_WIDTH
        for axes, box in zip(figure.axes, boxes, strict=True):
            if box.x0 == min(b.x0 for b in boxes):  # the first column has the labels of the shared axis
                assert axes.get_ylabel() == "errors" or columns == 2  # these panels were not moved
                assert any(label.get_visible() and label.get_text() for label in axes.get_yticklabels())
        plt.close(figure)


def test_empty_panels_leave_no_gap() -> None:
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(2, 4, layout="constrained")
        for axes in list(grid.flat)[:5]:
            axes.plot([1, 2])
        for axes in list(grid.flat)[5:]:
            axes.set_axis_off()
        make_narrow(figure, {})
        assert len(figure.axes) == 5
        assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 2)
        plt.close(figure)


def test_long_and_crowded_names_of_ticks_fit() -> None:
    names = [f"a name with many words, number {k}" for k in range(8)]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 4), layout="constrained")
        axes.plot(range(8), range(8))
        axes.set_xticks(range(8), ["torch\ncompile"] * 8)
        axes.set_yticks(range(8), names)
        make_narrow(figure, {})
        (box,) = list_boxes(figure)
        assert box.width > 0.4 * figure.bbox.width
        cut = [label.get_text() for label in axes.get_yticklabels()]
        assert all(new.startswith("a name") and new.endswith(old[-3:]) for old, new in zip(names, cut, strict=True))
        labels = sorted((label.get_window_extent() for label in axes.get_xticklabels()), key=lambda b: b.x0)
        assert not any(left.overlaps(right) for left, right in combinations(labels, 2))
        plt.close(figure)


def test_files_of_a_figure(tmp_path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = draw(1, 2)
        saved = save_figure(figure, tmp_path / "figures", "errors", "A caption.")
    assert (saved.width, saved.height) == (round(8.6 * 96), round(3.6 * 96))
    for name in ("errors.png", "errors.svg", "narrow/errors.svg"):
        assert (tmp_path / "figures" / name).stat().st_size > 0
    picture = plt.imread(io.BytesIO((tmp_path / "figures" / "errors.png").read_bytes()))
    assert picture.shape[1] == round(8.6 * STYLE["savefig.dpi"])
    width = f'width="{NARROW_WIDTH * 72:g}pt"'
    assert width in (tmp_path / "figures" / "narrow" / "errors.svg").read_text()


def test_cut_names_of_a_narrow_figure_stay_different() -> None:
    names = [f"data-convert-{name}-per_node_1" for name in ("alexandria", "ani1x", "mptrj")]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        axes.barh(range(3), [1, 2, 3])
        axes.set_yticks(range(3), names)
        make_narrow(figure, {})
        texts = [label.get_text() for label in axes.get_yticklabels()]
        plt.close(figure)
    assert len(set(texts)) == 3
    assert all("\u2026" in text for text in texts)


@pytest.mark.parametrize("panel", [0, 1])
def test_card_has_one_panel_with_its_labels(tmp_path: Path, panel: int) -> None:
    with mpl.rc_context(STYLE):
        figure = draw(1, 2, sharey=True)
        for axes, label in zip(figure.axes, ("hours", "node-hours"), strict=True):
            axes.set_xlabel(label)
        saved = save_figure(figure, tmp_path / "figures", "searches", "", card=panel)
    text = (tmp_path / "figures" / "card" / "searches.svg").read_text()
    assert saved.has_card
    assert [label in text for label in (">hours<", ">node-hours<")] == [panel == 0, panel == 1]
    assert text.count(">measured<") == 1
    assert ">2.0<" in text
