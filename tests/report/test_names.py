"""Names as nobody means them: what is accepted works wherever it is shown, and former ones too."""

import csv
import html
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from report.studies import QUICKSTART, draw_study
from report.test_browser import CHROMIUM, browser, opened  # noqa: F401

from normlab.cli import app
from normlab.compare.arm import arms
from normlab.compare.export import to_csv
from normlab.compare.status import read_status
from normlab.compare.store import Store
from normlab.config import make_study
from normlab.report import read_study, write_page, write_report
from normlab.report.verdicts import verdict_numbers
from normlab.report.view import views
from normlab.results import read_results
from normlab.spec import displayed

ACCEPTED = [
    *("a|b", "a&b", "A|B", "a b", "\u05d0\u05d1\u05d2", "\u0645\u0631\u062d\u0628\u0627", "😀"),
    *("\uff1d1+1", "\uff0b1", "=1+1", "-1", "@x", "<script>alert(1)</script>", "${x}", "{{ 7 }}"),
    *("a on b", "a, b=c", "it's", '"q"', "x" * 100, "overview.svg", "100%", "a\\b", "#_^~$&"),
]
# Of what every object of JavaScript has, levels and tuned values may have the names.
LEVELS = ["constructor", "__proto__", "toString", *ACCEPTED[:3], "=1+1", "${x}", "true", "<b>"]
# Accepted once, and refused since.
FORMER = ["constructor", "toString", "__proto__", "a\x07b", "a\x1b[31mb", "a\u200bb", "a\u2028b"]

NONE, BATCH = QUICKSTART["none"], QUICKSTART["batch"]
SMALL = {"tune": {}, "seeds": 3, "epochs": 3}


def variants(names):
    return {"none": NONE, **dict.fromkeys(names, BATCH)}


STUDIES = {
    "variants": {"variants": variants(ACCEPTED)},
    "tasks": {"variants": variants(["a|b"]), "tasks": {name: {} for name in ACCEPTED[::4]}},
    "levels": {"variants": variants(["a&b"]), "factors": {"model.word": LEVELS}},
    "former variants": {"variants": variants(FORMER)},
    "former tasks": {"variants": variants(["a"]), "tasks": {name: {} for name in FORMER}},
    "former levels": {"variants": variants(["a"]), "factors": {"model.word": FORMER}},
}


@pytest.fixture(scope="module", params=STUDIES)
def study(request, tmp_path_factory):
    folder = draw_study(tmp_path_factory.mktemp("names"), **SMALL | STUDIES[request.param])
    write_report(folder)
    return folder


def exported(capsys, *arguments):
    app.cli(args=["export", *map(str, arguments)], prog="normlab")
    return capsys.readouterr().out


def test_every_chart_is_drawn_of_every_arm(study):
    """A level `constructor` had no charts, a control character ended the process in its renderer,
    and of `__proto__` the axis was lost."""
    shown = views([read_study(study)])
    drawn = [ElementTree.parse(it) for it in (study / "charts").rglob("*.svg")]
    assert len(drawn) == sum(1 for _ in (study / "charts").rglob("*.svg")) > 5
    told = " ".join("".join(it.getroot().itertext()) for it in drawn)
    for arm in shown[0].arms[:12]:
        assert arm.name[:20] in told or "…" in told
    assert json.loads(read_results(study).plot().to_json())["hconcat"]


def test_tables_have_each_arm_in_its_row_and_nothing_to_compute(study, capsys):
    config = Store(study).config()
    planned = arms(config["variants"], config["factors"], config["tasks"])
    of_runs = list(csv.DictReader(io.StringIO(exported(capsys, study, "--format", "csv"))))
    assert {it["arm"].removeprefix("'") for it in of_runs} == {displayed(it.name) for it in planned}
    table = list(csv.DictReader(io.StringIO(exported(capsys, study, "--table", "csv"))))
    told = {(it["arm"].removeprefix("'"), it.get("task", "").removeprefix("'")) for it in table}
    several = len({it.task for it in planned}) > 1
    assert {(displayed(it.name), displayed(it.task)) for it in planned} <= told
    assert len(table) == len(planned) + several * len({it.name for it in planned})
    cells = [cell for row in [*of_runs, *table] for cell in row.values() if not _number(cell)]
    assert not [it for it in cells if it[:1] in set("=+-@\uff1d\uff0b\uff0d\uff20")]
    for form in ("latex", "markdown"):
        for way in ("--table", "--format"):
            rows = exported(capsys, study, way, form).splitlines()
            assert sum(" & " in row or row.startswith("| ") for row in rows) >= len(planned)
    assert {*read_status(study).arms} == {it.displayed.title for it in planned}


def _number(cell):
    return re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell)


def test_full_width_formulas_are_no_formulas(tmp_path):
    """A spreadsheet takes ＝ for =, and computes it."""  # noqa: RUF002
    folder = draw_study(tmp_path, variants(["\uff1dA1", "\uff20A1"]), **SMALL)
    told = to_csv(verdict_numbers(read_study(folder).summary))
    assert "\n'\uff1dA1," in told
    assert "\n'\uff20A1," in told


def test_no_chart_takes_the_place_of_another(tmp_path):
    """`a|b` and `a&b` have one name of a file, and so have `a` and `A` on some disks."""
    tune = {"variants.a|b.epsilon": [1, 2], "variants.a&b.epsilon": [1, 2], "model.a_b": [1, 2]}
    factors = {"model.x_y": ["a", "b"], "model.x.y": ["a", "b"], "model.X_y": ["a", "b"]}
    arms = variants(["a|b"])
    folder = draw_study(tmp_path, arms, tune, factors=factors, tune_seeds=1, seeds=1, epochs=2)
    study = read_study(folder)
    page = write_report(study).read_text()
    names = [it.name.casefold() for it in (folder / "charts").iterdir()]
    assert len({*names}) == len(names)
    assert sum(it.startswith("tuning-") for it in names) == 3
    assert sum(it.startswith("by-model") for it in names) == 3
    ids = re.findall(r'<div id="([^"]*)"', page)
    assert len({*ids}) == len(ids)


def test_joined_studies_show_all_names(study, tmp_path):
    other = draw_study(tmp_path / "other", variants(ACCEPTED[:3]), **SMALL, study="other")
    page = write_page([study, other], tmp_path / "joined.html").read_text()
    for arm in read_study(study).summary.arms:
        assert arm.name in html.unescape(page)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_the_page_works_in_a_browser(study, opened):  # noqa: F811
    page = opened(study)
    shown = views([read_study(study)])
    for number, view in enumerate(shown[:4]):
        if len(shown) > 1:
            page.locator("#view").select_option(str(number))
        names = page.locator(".results:visible tbody tr[data-arm]:visible th").all_inner_texts()
        assert sorted(names) == sorted(it.name for it in view.arms)
        page.locator("select.baseline:visible").select_option(index=1)
        assert "undefined" not in page.locator(".results:visible").inner_text()
    assert page.locator("script:not(head *):not(body > *), b[onclick]").count() == 0
    page.set_viewport_size({"width": 1280, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    if len(shown[0].arms) > 2:
        button = page.locator("button[data-arm]").last
        button.click()
        assert button.get_attribute("aria-pressed") == "false"


def a_study(**changes):
    return {
        "study": "small",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [4]},
        "variants": {"none": {"layer": "identity"}},
        "seeds": 3,
        **changes,
    }


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_the_same_when_its_configuration_is_run_again(name, tmp_path):
    """`baseline: ${x}` in a stored configuration was a reference to a key."""
    if "${" in name:
        variants = {name: {"layer": "identity"}}
    else:
        variants = {name: {"layer": "identity"}, "batch": {"layer": "batch_norm"}}
    study = make_study(
        a_study(variants=variants, tasks={name: {}, "b": {"data.batch_size": 8}}), {}
    )
    Store(tmp_path).write_config(study.model_dump(mode="json"))
    assert Store(tmp_path).config() == study.model_dump(mode="json")
    assert make_study(tmp_path / "config.yaml", {}) == study == make_study(study, {})
