"""The page: whole, escaped, written without JAX and read without a network."""

import html.parser
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from report.studies import QUICKSTART, RATES, SOMETIMES_DIVERGED, draw_study

from normlab.report import read_study, write_report
from normlab.report.style import COLORS, colors

BATCH = QUICKSTART["batch"]
CASES = {
    "no runs": {"final": False, "tune": {}},
    "no final runs": {"final": False},
    "one seed and no tuning": {"seeds": 1, "tune": {}},
    "one variant": {"variants": {"batch": BATCH}},
    "some runs diverged": {"variants": SOMETIMES_DIVERGED},
    "all runs diverged": {"variants": {"batch": BATCH | {"diverges": range(8), "limit": 0.0}}},
    "all runs diverged in the first epoch": {
        "variants": {name: BATCH | {"diverges": range(8), "limit": 0.0} for name in "ab"},
        "epochs": 2,
    },
    "two tuned paths": {"tune": RATES | {"optimizer.weight_decay": [0.0, 0.0001]}},
}
TEN_BY_TWENTY = {
    "variants": QUICKSTART
    | {f"a_longer_name_{place}": BATCH | {"skill": 0.95 + 0.003 * place} for place in range(4)},
    "seeds": 20,
    "epochs": 200,
    "tune_seeds": 1,
}


class Parsed(html.parser.HTMLParser):
    """Collects all elements with their attributes, and the text outside of scripts."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.text = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements[-1:] and self.elements[-1][0] not in ("script", "style"):
            self.text += data


@pytest.mark.parametrize("case", CASES)
def test_every_study_gets_a_page(tmp_path, case):
    page = write_report(draw_study(tmp_path, **{"epochs": 6, **CASES[case]}))
    assert page == tmp_path / "report.html"
    text = Parsed(page).text
    assert "How to read this" in text
    for wrong in ("nan", "None", "inf ", "Undefined"):
        assert wrong not in text.replace("None", "", text.count("None: ")), wrong


def test_the_page_says_who_won_by_how_much_and_whether_to_believe_it(quickstart):
    text = " ".join(Parsed(quickstart / "report.html").text.split())
    summary = read_study(quickstart).summary
    lead = summary["ghost16"].comparison.difference
    assert text.index("ghost16 came first with 98.19% test accuracy") < 200
    assert f"+{100 * lead.value:.2f} points" in text
    assert "above none, the baseline ✓ believe it" in text
    assert "above batch, the runner-up ? not sure yet" in text
    assert "normlab compare configs/quickstart.yaml" in text
    assert "optimizer.learning_rate: - 0.003" in text
    assert "flax 0.12.8" in text


def test_every_variant_has_one_colour_of_its_own(tmp_path):
    variants = {f"v{place}": BATCH for place in range(1 + len(COLORS))}
    chosen = colors(read_study(draw_study(tmp_path, variants, tune={}, final=False)))
    assert list(chosen) == list(variants)
    assert len(set(chosen.values())) == len(variants)


def test_names_are_escaped_everywhere(hurtful):
    parsed = Parsed(hurtful / "report.html")
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in parsed.elements]
    assert "<script>alert(1)</script>" in parsed.text
    assert "<script>alert(2)</script>" in parsed.text
    assert "a'\"&{{ 7 * 7 }}${b}" in parsed.text


def test_nothing_is_loaded_from_elsewhere(quickstart):
    parsed = Parsed(quickstart / "report.html")
    loaded = [
        value
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert loaded == ["data:,"]
    styles = re.search(r"<style>(.*?)</style>", (quickstart / "report.html").read_text(), re.S)
    assert "url(" not in styles.group(1)
    assert "@import" not in styles.group(1)
    policy = [it["content"] for _, it in parsed.elements if "http-equiv" in it]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none';")
    assert "http" not in policy[0]


def test_ten_variants_by_twenty_seeds_stay_under_three_megabytes(tmp_path):
    page = write_report(draw_study(tmp_path, **TEN_BY_TWENTY))
    assert page.stat().st_size < 3_000_000


def test_charts_are_drawings_for_papers(quickstart):
    names = {path.name for path in (quickstart / "charts").iterdir()}
    assert names == {
        "overview.svg",
        "test-accuracy.svg",
        "differences.svg",
        "validation-accuracy.svg",
        "training-loss.svg",
        "tuning-optimizer-learning_rate.svg",
    }
    for path in (quickstart / "charts").iterdir():
        root = ElementTree.parse(path).getroot()
        text = "".join(root.itertext())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "ghost16" in text
        assert path.stat().st_size < 200_000


def test_reports_are_written_without_jax(tmp_path):
    program = """
import sys
for name in ("jax", "jaxlib", "flax", "optax", "chex"):
    sys.modules[name] = None
from rich.console import Console
from normlab.report import print_table, read_study, write_report
print(write_report(sys.argv[1]))
print_table(read_study(sys.argv[1]).summary, Console())
"""
    draw_study(tmp_path, {"batch": BATCH}, seeds=2)
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "report.html").exists()


def test_the_numbers_are_written_as_json_that_every_reader_takes(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    write_report(draw_study(tmp_path, **{"epochs": 6, **CASES["some runs diverged"]}))
    told = json.loads((tmp_path / "summary.json").read_text("utf-8"), parse_constant=refuse)
    summary = read_study(tmp_path).summary
    assert told["summary"]["contests"][0]["best"] == summary.best
    for said, meant in zip(told["summary"]["arms"], summary.arms, strict=True):
        assert said["accuracy"]["value"] == meant.accuracy.value
        assert (said["loss"]["value"] is None) == bool(meant.diverged)


def test_arms_with_a_model_of_their_own_are_named(tmp_path):
    own = {"model": {"residual": "skip_init"}, "optimizer": {"adaptive_gradient_clip": 0.1}}
    draw_study(tmp_path, {"none": QUICKSTART["none"] | own, "batch": BATCH}, epochs=2)
    text = Parsed(write_report(tmp_path)).text
    assert "none: model.residual=skip_init, optimizer.adaptive_gradient_clip=0.1" in text
    assert "Only the normalization differs" not in text
    assert "as far as their models have the same ones" in text
