"""The pages of a report work in a real browser: links resolve, the console is silent, no element is too wide."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from harness.report.render import write_report
from harness.report.site import TITLES
from harness.tracking.history import HISTORY_FILE, append_measurements
from tests.conftest import require_program
from tests.experiments.test_hpo_report import make_trial, write_search
from tests.experiments.test_projection import write_scaling_run
from tests.experiments.test_training_report import HEADS, make_row
from tests.experiments.test_training_report import write_run as write_training
from tests.report.test_report import write_run
from tests.telemetry.exports import Recording, sample, write_case
from tests.tracking.test_history import make_measurements

WIDTHS = (1280, 390)
# This page loads every page in frames of several widths, and writes its measurements into its title.
PROBE = """\
<!doctype html><title>not done</title><body><script>
const results = [];
async function probe() {
  for (const width of WIDTHS) for (const page of PAGES) {
    const frame = document.createElement('iframe');
    frame.style.cssText = `width:${width}px;height:800px;border:0`;
    const loaded = new Promise(resolve => { frame.onload = resolve; });
    frame.src = page;
    document.body.appendChild(frame);
    await loaded;
    const root = frame.contentDocument.documentElement;
    const wide = [...frame.contentDocument.querySelectorAll('body *')]
      .filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > width + 1)
      .map(e => e.tagName + '.' + e.className).slice(0, 3);
    results.push({page, width, scroll: root.scrollWidth, wide, title: frame.contentDocument.title,
      figures: frame.contentDocument.querySelectorAll('figure svg').length});
    frame.remove();
  }
  document.title = JSON.stringify(results);
}
probe();
</script></body>
"""


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


def test_browser_shows_every_page_without_errors(out: Path, tmp_path: Path) -> None:
    require_program("chromium")
    pages = sorted(path.name for path in out.glob("*.html"))
    urls = [(out / name).resolve().as_uri() for name in pages]
    probe = PROBE.replace("WIDTHS", json.dumps(WIDTHS)).replace("PAGES", json.dumps(urls))
    (tmp_path / "probe.html").write_text(probe)
    command = [
        str(shutil.which("chromium")), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--v=0", "--virtual-time-budget=60000", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    console_messages = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not console_messages
    title = re.search(r"<title>(.*?)</title>", result.stdout, re.DOTALL)
    assert title, result.stderr[-2000:]
    measured = json.loads(html.unescape(title[1]))
    assert len(measured) == len(WIDTHS) * len(pages)
    for row in measured:
        assert not row["wide"], row
        assert row["scroll"] <= row["width"], row
    assert {r["page"] for r in measured if r["figures"]} >= {
        u for u in urls if u.endswith(("training.html", "search.html"))
    }
