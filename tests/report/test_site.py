"""The pages of a report in a real browser: links lead somewhere, the console is silent, nothing is too wide."""

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
from harness.tracking.history import FILE_NAME, append_measurements
from tests.conftest import needs
from tests.experiments.test_hpo_report import searched, trial
from tests.experiments.test_projection import ran
from tests.experiments.test_training_report import HEADS, held_out
from tests.experiments.test_training_report import write_run as write_training
from tests.report.test_report import write_run
from tests.telemetry.exports import Recorded, case, every
from tests.tracking.test_history import make_measurements

WIDTHS = (1280, 390)
# Loads every page in a frame of a given width, and writes what it finds into its own title.
PROBE = """\
<!doctype html><title>not done</title><body><script>
const found = [];
async function probe() {
  for (const width of WIDTHS) for (const page of PAGES) {
    const frame = document.createElement('iframe');
    frame.style.cssText = `width:${width}px;height:800px;border:0`;
    const loaded = new Promise(done => { frame.onload = done; });
    frame.src = page;
    document.body.appendChild(frame);
    await loaded;
    const root = frame.contentDocument.documentElement;
    const wide = [...frame.contentDocument.querySelectorAll('body *')]
      .filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > width + 1)
      .map(e => e.tagName + '.' + e.className).slice(0, 3);
    found.push({page, width, scroll: root.scrollWidth, wide, title: frame.contentDocument.title,
      figures: frame.contentDocument.querySelectorAll('figure svg').length});
    frame.remove();
  }
  document.title = JSON.stringify(found);
}
probe();
</script></body>
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with something on most pages, one case that failed among it."""
    place = tmp_path_factory.mktemp("site")
    write_run(place)
    write_training(place, "run", [held_out(h, 0.01, 0.1, role=f"stand-in for {h}") for h in HEADS])
    searched(place, "mace", [trial(k, v) for k, v in enumerate([-3.0, None, -1.0, -2.0, -0.5, -0.4])])
    searched(place, "painn", [trial(0, -0.2, "painn")], exit_code=1)
    for ranks in (1, 2, 4):
        ran(place, ranks, batch=8)
    case(place, "watched", 10, 50, nodes=["n1"], program="omnistat")
    power = Recorded().add("rocm_average_socket_power_watts", "n1", every(1, 60, 300.0), card="0")
    power.write(place / "runs/mine/jobs/job.1.omnistat.jsonl")
    entries = make_measurements([1.0, 1.0, 1.2])
    append_measurements(place / FILE_NAME, entries)
    write_report(place)
    return place


def test_links_of_pages_resolve(out: Path) -> None:
    there = [path.stem for path in out.glob("*.html")]
    assert set(there) == {"index", "training", "search", "scaling", "ladder", "cost", "regression", "provenance"}
    for name in there:
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
    needs("chromium")
    pages = sorted(path.name for path in out.glob("*.html"))
    urls = [(out / name).resolve().as_uri() for name in pages]
    probe = PROBE.replace("WIDTHS", json.dumps(WIDTHS)).replace("PAGES", json.dumps(urls))
    (tmp_path / "probe.html").write_text(probe)
    words = [
        str(shutil.which("chromium")), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--v=0", "--virtual-time-budget=60000", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    found = json.loads(html.unescape(title[1]))
    assert len(found) == len(WIDTHS) * len(pages)
    for row in found:
        assert not row["wide"], row
        assert row["scroll"] <= row["width"], row
    assert {r["page"] for r in found if r["figures"]} >= {
        u for u in urls if u.endswith(("training.html", "search.html"))
    }
