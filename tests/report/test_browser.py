"""The page in a real browser: drawn without a complaint, and its buttons work."""

import re
import shutil
import subprocess

import pytest
from report.studies import SOMETIMES_DIVERGED, draw_study

from normlab.report import read_study, write_report
from normlab.report.style import colors

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]


def opened(page, folder):
    """The page as Chromium has it when all scripts ran, and what it wrote to its console."""
    process = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1200,900"),
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    console = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
    return process.stdout, console


def drawings(document):
    """Name of each chart -> its SVG, as far as it was drawn."""
    found = re.findall(r'<div id="([\w-]+)" class="chart[^>]*>(.*?)</figcaption>', document, re.S)
    return {name: content for name, content in found if "<svg" in content}


def test_an_unlucky_study_is_drawn_without_a_complaint(tmp_path):
    page = write_report(draw_study(tmp_path, SOMETIMES_DIVERGED))
    document, console = opened(page, tmp_path)
    assert console == []
    assert "2 of 8 diverged" in drawings(document)["test-accuracy"]


def test_hurtful_names_are_drawn_and_run_nothing(hurtful, tmp_path):
    document, console = opened(hurtful / "report.html", tmp_path)
    assert console == []
    assert "&lt;script&gt;alert(2)" in drawings(document)["test-accuracy"]


def test_all_charts_are_drawn_and_the_buttons_hide_a_variant_in_each(quickstart, tmp_path):
    page = quickstart / "report.html"
    document, console = opened(page, tmp_path)
    assert console == []
    drawn = drawings(document)
    assert len(drawn) == 5
    orange = colors(read_study(quickstart))["ghost16"]
    assert all(orange in chart for chart in drawn.values())

    clicked = tmp_path / "clicked.html"
    click = (
        "<script>setTimeout(() => document.querySelector("
        "'button[data-variant=ghost16]').click(), 1000)</script>"
    )
    clicked.write_text(page.read_text("utf-8") + click, encoding="utf-8")
    document, console = opened(clicked, tmp_path)
    assert console == []
    drawn = drawings(document)
    assert len(drawn) == 5
    assert not any(orange in chart for chart in drawn.values())
    assert re.search(r'aria-pressed="false" data-variant="ghost16"', document)
