"""The pages of a report work in a real browser: on small screens, with the keyboard, for readers of any kind."""

from __future__ import annotations

import html
import itertools
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.document.blocks import EN_DASH
from harness.report.render import write_report
from harness.report.site import TITLES
from harness.tracking.history import HISTORY_FILE, append_measurements
from tests.conftest import require_program
from tests.experiments.test_hpo_report import make_trial, write_search
from tests.experiments.test_projection import write_scaling_run
from tests.experiments.test_training_report import HEADS, make_row
from tests.experiments.test_training_report import write_run as write_training
from tests.report.test_report import write_run
from tests.support.browser import Page, load_axe, open_browser
from tests.telemetry.exports import Recording, sample, write_case
from tests.tracking.test_history import make_measurements

WIDTHS = (1280, 390)
# Elements that reach beyond the right edge, except in boxes that scroll, and pictures that are not shown.
MEASURE = """(async () => {
  for (const image of document.images) { image.loading = 'eager'; await image.decode().catch(() => {}); }
  const root = document.documentElement;
  return {
    scroll: root.scrollWidth,
    wide: [...document.querySelectorAll('body *')]
      .filter(e => !e.closest('.wide, .skip, svg') && e.getBoundingClientRect().right > root.clientWidth + 1)
      .map(e => e.outerHTML.slice(0, 80)),
    absent: [...document.images].filter(e => !e.naturalWidth).map(e => e.src),
    pictures: document.images.length,
  };
})()"""
CONTROLS = "a[href], button, input, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report with content on most pages, including a case that failed."""
    folder = tmp_path_factory.mktemp("site")
    write_run(folder)
    write_training(folder, "run", [make_row(h, 0.01, 0.1, data_origin=f"stand-in for {h}") for h in HEADS])
    write_search(folder, "mace", [make_trial(k, v) for k, v in enumerate([-3.0, None, -1.0, -2.0, -0.5, -0.4])])
    write_search(folder, "painn", [make_trial(0, -0.2, "painn")], exit_code=1)
    for ranks in (1, 2, 4):
        write_scaling_run(folder, ranks, batch=8)
    write_case(folder, "watched", 10, 50, nodes=["n1"], program="omnistat")
    power = Recording().add("rocm_average_socket_power_watts", "n1", sample(1, 60, 300.0), card="0")
    power.write(folder / "runs/mine/jobs/job.1.omnistat.jsonl")
    entries = make_measurements([1.0, 1.0, 1.2])
    append_measurements(folder / HISTORY_FILE, entries)
    write_report(folder)
    return folder


def test_links_of_pages_resolve(out: Path) -> None:
    names = [path.stem for path in out.glob("*.html")]
    assert set(names) == {"index", "training", "search", "scaling", "ladder", "cost", "regression", "provenance"}
    for name in names:
        text = (out / f"{name}.html").read_text()
        anchors = set(re.findall(r'\bid="([^"]+)"', text))
        links = [html.unescape(link) for link in re.findall(r'\bhref="([^"]+)"', text)]
        assert len(links) > 5
        for link in links:
            if link.startswith("#"):
                assert link[1:] in anchors, (name, link)
            else:
                assert "://" not in link
                assert (out / urllib.parse.unquote(link)).exists(), (name, link)
        assert f"<title>{TITLES[name]} - " in text


def test_pages_link_to_figures_tables_and_raw_records(out: Path) -> None:
    for name, table in (
        ("training", "training_errors"),
        ("search", "hpo_trials"),
        ("scaling", "projection"),
        ("cost", "cost_cases"),
    ):
        text = (out / f"{name}.html").read_text()
        assert f'href="tables/{table}.csv"' in text
        assert re.search(r'href="runs/[\w-]+/"', text)
        assert re.search(r'href="figures/[\w-]+\.svg"', text)
    assert 'href="runs/ladder-local/case-fp64/events.jsonl"' in (out / "index.html").read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    require_program("chromium")
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def list_pages(out: Path) -> list[Path]:
    return sorted(out.glob("*.html"))


@pytest.mark.parametrize("width", WIDTHS)
def test_browser_shows_every_page_without_errors(out: Path, browser: Page, width: int) -> None:
    for path in list_pages(out):
        browser.open(path, width)
        measured = browser.evaluate(MEASURE)
        assert not browser.messages, path
        assert not measured["wide"], path
        assert measured["scroll"] <= width, path
        assert not measured["absent"], path
        assert measured["pictures"] or path.stem not in ("index", "training", "search", "ladder"), path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_issue(out: Path, browser: Page, scheme: str) -> None:
    axe, serious = load_axe(), []
    for path, width in itertools.product(list_pages(out), WIDTHS):
        browser.open(path, width, scheme)
        browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        browser.evaluate(f"{axe}; 0")
        issues = browser.evaluate("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html]))")
        serious += [(path.name, width, *issue) for issue in issues if issue[0] in ("serious", "critical")]
    assert not serious


def test_keyboard_reaches_every_control(out: Path, browser: Page) -> None:
    for path in list_pages(out):
        browser.open(path, 1280)
        number = browser.evaluate(
            f"""(() => {{
              const isShown = (e) => e.checkVisibility() && !e.closest('details:not([open]) > :not(summary)');
              window.controls = [...document.querySelectorAll({CONTROLS!r})].filter(isShown);
              window.reached = new Set();
              addEventListener('focusin', (event) => window.reached.add(event.target));
              return window.controls.length;
            }})()"""
        )
        for _ in range(number + 1):
            browser.press("Tab")
        missed = browser.evaluate("window.controls.filter(e => !window.reached.has(e)).map(e => e.outerHTML)")
        assert number > 10
        assert not missed, path


def test_tables_sort_and_filter_with_the_keyboard(out: Path, browser: Page) -> None:
    browser.open(out / "search.html", 1280)
    browser.evaluate(
        """(() => {
          window.table = [...document.querySelectorAll('table')].find(t => t.dataset.title.startsWith('Trials'));
          window.table.closest('details').open = true;
          window.column = [...window.table.tHead.rows[0].cells].findIndex(c => c.textContent.startsWith('(MAE'));
          window.table.tHead.rows[0].cells[window.column].querySelector('button').focus();
          window.read = () => [...window.table.tBodies[0].rows].map(r => r.cells[window.column].textContent);
        })()"""
    )
    before = browser.evaluate("window.read()")
    numbers = sorted((x for x in before if x != EN_DASH), key=float)
    browser.press("Enter")
    dashes = [EN_DASH] * before.count(EN_DASH)
    assert dashes
    assert browser.evaluate("window.read()") == numbers + dashes
    browser.press("Enter")
    assert browser.evaluate("window.read()") == numbers[::-1] + dashes
    rows = browser.evaluate(
        """(() => {
          const input = window.table.closest('details').querySelector('input');
          input.value = 'timeout';
          input.dispatchEvent(new Event('input'));
          return [...window.table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.textContent);
        })()"""
    )
    assert 0 < len(rows) < len(before)
    assert all("timeout" in row for row in rows)


def test_paper_shows_folded_tables(out: Path, browser: Page) -> None:
    browser.open(out / "search.html", 1280)
    browser.call("Emulation.setEmulatedMedia", media="print")
    heights = "[...document.querySelectorAll('details:not([open]) table')].map(t => t.getBoundingClientRect().height)"
    folded = browser.evaluate(heights)
    browser.call("Emulation.setEmulatedMedia", media="")
    assert folded
    assert min(folded) > 0


def test_first_page_is_small(out: Path) -> None:
    assert (out / "index.html").stat().st_size < 150_000
