"""The page in a real browser: drawn without a complaint, and all that can be clicked works."""

import itertools
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from report.studies import SOMETIMES_DIVERGED, draw_study

from normlab.compare.export import run_table, to_csv
from normlab.compare.store import Store
from normlab.report import read_study, words, write_report
from normlab.report.verdicts import verdict_numbers
from normlab.report.view import views

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
ALL_DRAWN = """() => [...document.querySelectorAll('.chart')]
    .filter(it => it.offsetParent).every(it => it.querySelector('svg'))"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens the page of a study; in the end there was no complaint and nothing was asked for."""
    contexts, complaints = [], []

    def open_page(folder, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        address = (folder / "report.html").as_uri()
        page.on("request", lambda it: complaints.append(it.url) if it.url != address else None)
        page.goto(address)
        page.wait_for_function(ALL_DRAWN)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def arms(page):
    """The names in the rows of the table that is shown, from above."""
    return page.locator(".results:visible tbody tr[data-arm]:visible th").all_inner_texts()


def colors_drawn(page, color):
    """How many charts show a colour."""
    return page.evaluate(
        """color => [...document.querySelectorAll('.chart svg')]
        .filter(it => it.innerHTML.toLowerCase().includes(color)).length""",
        color.lower(),
    )


def test_all_charts_are_drawn_by_day(opened, quickstart):
    page = opened(quickstart)
    assert page.locator(".chart svg").count() == 7
    expect(page.get_by_role("heading", level=2).first).to_contain_text("ghost16")


@pytest.mark.parametrize("name", ["with_factor", "with_tasks", "hurtful"])
def test_every_view_is_drawn_and_nothing_in_it_runs(opened, request, name):
    folder = request.getfixturevalue(name)
    page = opened(folder)
    shown = views([read_study(folder)])
    for number, view in enumerate(shown):
        if len(shown) > 1:
            page.locator("#view").select_option(str(number))
            page.wait_for_function(ALL_DRAWN)
            expect(page.locator(".verdict .eyebrow:visible")).to_have_text(view.title)
        headline = words.conclude(view.summary).headline
        assert page.locator(".verdict:visible h2").text_content() == headline
        assert set(arms(page)) == {it.name for it in view.arms}
        assert page.locator(".chart:visible svg").count() >= 4
    assert page.locator("img, b[onclick], svg[onload]").count() == 0


def test_an_unlucky_study_is_drawn_without_a_complaint(opened, tmp_path):
    write_report(draw_study(tmp_path, SOMETIMES_DIVERGED))
    page = opened(tmp_path)
    expect(page.locator("#test-accuracy-0-chart")).to_contain_text("2 of 8 diverged")
    chart = page.locator("#differences-0-chart")
    note = chart.locator("text", has_text="2 of 8 diverged").bounding_box()
    (zero,) = [it.bounding_box() for it in chart.locator("line[stroke-dasharray='4,3']").all()]
    assert not note["x"] - 3 <= zero["x"] <= note["x"] + note["width"] + 3


def test_a_click_on_a_header_sorts_and_another_turns_round(opened, quickstart):
    page = opened(quickstart)
    summary = read_study(quickstart).summary
    by_loss = sorted((it.name for it in summary.arms), key=lambda it: summary[it].loss.value)
    header = page.locator(".results th", has_text="test loss")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert arms(page) == by_loss
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert arms(page) == by_loss[::-1]
    assert page.locator(".results [aria-sort]").count() == 1


def test_what_is_missing_is_sorted_last(opened, quickstart):
    page = opened(quickstart)
    header = page.locator(".results th", has_text="difference")
    for _ in range(2):
        header.get_by_role("button").click()
        assert arms(page)[-1] == "none"


def test_another_baseline_changes_differences_and_verdicts(opened, quickstart):
    page = opened(quickstart)
    summary = read_study(quickstart).summary
    page.get_by_label("Compare with").select_option(label="batch")
    expected = summary.against({it.name: "batch" for it in summary.arms})
    assert len(expected) == 5
    for name, comparison in expected.items():
        row = page.locator(f".results tr[data-arm={name}]")
        difference = row.locator("[data-key=difference]").inner_text()
        assert difference.split() == [
            words.difference(comparison),
            *words.interval_of(comparison).split(),
        ]
        verdict = {"better": "better", "worse": "worse", "undecided": "undecided"}
        assert verdict[comparison.verdict] in row.locator("[data-key=verdict]").inner_text()
        beside = row.locator("[data-key=verdict] span").get_attribute("title")
        assert beside == words.beside(comparison)
    assert {it.verdict for it in expected.values()} == {"worse", "undecided"}
    assert (
        page.locator(".results tr[data-arm=batch] [data-key=difference]").inner_text() == "baseline"
    )
    sentences = page.locator(".sentences li").all_text_contents()
    assert sorted(sentences) == sorted(it.sentence for it in expected.values())


def test_a_button_hides_an_arm_everywhere(opened, quickstart):
    page = opened(quickstart)
    color = views([read_study(quickstart)])[0].looks["ghost16"].color
    assert colors_drawn(page, color) == 7
    button = page.get_by_role("button", name="ghost16")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert "ghost16" not in arms(page)
    page.get_by_text("Medians, interquartile means, chances").click()
    others = page.locator("table:not(.results) tbody tr:visible th").all_inner_texts()
    assert sorted(others) == ["batch", "group", "layer", "none", "rms"]
    assert page.get_by_role("columnheader", name="chance to beat none").is_visible()
    page.wait_for_function(
        """color => ![...document.querySelectorAll('.chart svg')]
        .some(it => it.innerHTML.toLowerCase().includes(color))""",
        arg=color.lower(),
    )
    button.click()
    assert "ghost16" in arms(page)


def test_curves_go_by_epoch_step_or_seconds(opened, quickstart):
    page = opened(quickstart)
    curves = [page.locator(f"#{it}-0-chart") for it in ("validation-accuracy", "training-loss")]
    for axis in ("step", "seconds", "epoch"):
        page.get_by_role("radio", name=axis).first.check()
        for chart in curves:
            expect(chart.locator("svg")).to_contain_text(axis)
    assert page.locator(".choices input[value=epoch]:checked").count() == 2


def test_a_level_is_chosen(opened, with_factor):
    page = opened(with_factor)
    page.get_by_role("combobox", name="batch_size").select_option(label="64")
    assert set(arms(page)) == {
        f"{variant}, batch_size=64" for variant in ("none", "batch", "ghost16", "layer")
    }
    assert page.locator(".legend button:visible").count() == 4
    # The factor's chart has one dot an arm left.
    expect(page.locator("#by-data-batch-size-0-chart .mark-symbol path:visible")).to_have_count(4)


def test_all_of_it_works_by_keyboard(opened, quickstart):
    page = opened(quickstart)

    def tab_to(role, text):
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                """() => { const it = document.activeElement;
                return [it.type || it.tagName, it.textContent.trim(), it.value || ""]; }"""
            )
            if focused[0] == role and text in focused[1:]:
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                assert page.evaluate(outline) != "none"
                return
        raise AssertionError(f"no {role} {text} can be reached")

    tab_to("button", "rms")
    page.keyboard.press("Space")
    assert "rms" not in arms(page)
    page.keyboard.press("Enter")
    tab_to("select-one", "0")
    page.keyboard.press("ArrowDown")
    expect(page.locator("tr[data-arm=batch] [data-key=difference]")).to_have_text("baseline")
    tab_to("button", "arm")
    page.keyboard.press("Enter")
    assert arms(page) == ["batch", "ghost16", "group", "layer", "none", "rms"]
    tab_to("radio", "epoch")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#training-loss-0-chart svg")).to_contain_text("step")


@pytest.mark.parametrize("name", ["quickstart", "with_factor", "with_tasks"])
def test_the_table_begins_on_the_first_screen_of_a_phone(opened, request, name):
    page = opened(request.getfixturevalue(name), viewport={"width": 360, "height": 640})
    first = page.locator(".results:visible tbody tr[data-arm]").first.bounding_box()
    assert first["y"] + 20 < 640
    # What went behind it is a touch away.
    note = page.locator(".verdict:visible .remarks, .verdict:visible .facts").first
    expect(note).to_be_hidden()
    page.locator(".verdict:visible .more > summary").click()
    expect(note).to_be_visible()


def test_on_a_desk_nothing_of_the_conclusion_is_folded(opened, quickstart):
    page = opened(quickstart)
    expect(page.locator(".verdict .facts")).to_be_visible()
    expect(page.locator(".verdict .remarks")).to_be_visible()


@pytest.mark.parametrize(
    "chart", ["validation-accuracy", "training-loss", "time-to-target", "budget"]
)
def test_curves_have_their_names_at_their_ends_and_none_covers_another(opened, quickstart, chart):
    page = opened(quickstart)
    names = [it.name for it in read_study(quickstart).summary.arms]
    boxes = [
        page.locator(
            f"#{chart}-0-chart .mark-text.role-mark text", has_text=re.compile(f"^{name}$")
        ).bounding_box()
        for name in names
    ]
    boxes.sort(key=lambda box: box["y"])
    plot = page.locator(f"#{chart}-0-chart .background").first.bounding_box()
    for box, below in itertools.pairwise(boxes):
        assert below["y"] - box["y"] >= 12
    for box in boxes:
        assert plot["y"] - 10 < box["y"] < plot["y"] + plot["height"] + 10


def test_the_band_of_a_curve_shows_where_the_pointer_is(opened, quickstart):
    page = opened(quickstart)
    chart = page.locator("#validation-accuracy-0-chart")
    shown = """chart => [...chart.querySelectorAll('.mark-area path')]
        .filter(it => +(it.getAttribute('opacity') ?? it.getAttribute('fill-opacity') ?? 1) > 0)
        .map(it => it.getAttribute('fill'))"""
    assert chart.evaluate(shown) == []
    color = views([read_study(quickstart)])[0].looks["none"].color
    chart.locator(f".mark-line path[stroke='{color}']").dispatch_event("pointerover")
    page.wait_for_function(f"chart => ({shown})(chart).length === 1", arg=chart.element_handle())
    assert chart.evaluate(shown) == [color]


def test_no_dot_lies_under_its_bar(opened, quickstart):
    page = opened(quickstart)
    chart = page.locator("#test-accuracy-0-chart")
    for color in {look.color for look in views([read_study(quickstart)])[0].looks.values()}:
        bar = chart.locator(f".mark-rule line[stroke='{color}']").first.bounding_box()
        dots = chart.locator(f".mark-symbol path[fill='{color}']").all()
        tops = sorted(it.bounding_box()["y"] for it in dots)
        assert len(tops) == 8 + 1
        # All but the mean, which is drawn on the bar.
        assert all(top > bar["y"] + bar["height"] for top in tops[1:])


def test_the_values_chosen_are_named(opened, quickstart):
    page = opened(quickstart)
    chart = page.locator("[id^=tuning-]")
    told = chart.locator(".mark-text.role-mark text").all_text_contents()
    assert sorted(told) == sorted(it.name for it in read_study(quickstart).summary.arms)


def test_arms_at_one_level_stand_together_however_they_are_sorted(opened, with_factor):
    page = opened(with_factor)
    groups = [set(it.arms) for it in read_study(with_factor).summary.contests]
    for _ in range(2):
        page.locator(".results th", has_text="test loss").get_by_role("button").click()
        shown = arms(page)
        assert [set(shown[start : start + 4]) for start in (0, 4, 8)] == groups
    told = page.locator(".results .levels").all_inner_texts()
    assert told == [f"batch_size={size}" for size in (16, 64, 256)]


def test_the_tables_can_be_downloaded(opened, quickstart):
    page = opened(quickstart)
    for name, expected in (
        ("quickstart-verdicts.csv", to_csv(verdict_numbers(read_study(quickstart).summary))),
        ("quickstart-runs.csv", to_csv(run_table(quickstart))),
    ):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        assert download.value.suggested_filename == name
        assert Path(download.value.path()).read_text("utf-8") == expected


def test_no_verdict_has_two_names(opened, tmp_path):
    equal = {"none": {"layer": "identity", "skill": 0.95, "rate": 0.1}}
    equal["same"] = {"layer": "batch_norm", "skill": 0.95, "rate": 0.1}
    store = Store(draw_study(tmp_path, equal, tune={}, seeds=20, epochs=4))
    store.write_config(store.config() | {"margin": 0.02})
    write_report(tmp_path)
    page = opened(tmp_path)
    cell = page.locator(".results tr[data-arm=same] [data-key=verdict]")
    expect(cell).to_contain_text("equivalent")
    assert "o different" not in page.locator(".results").inner_text()


@pytest.mark.parametrize("name", ["quickstart", "with_factor", "hurtful"])
def test_a_phone_needs_no_scrolling_to_the_side(opened, request, name):
    page = opened(request.getfixturevalue(name), viewport={"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    cut = page.evaluate(
        """() => [...document.querySelectorAll('main *')]
        .filter(it => it.offsetParent && !it.closest('.legend, pre, thead') && !it.closest('svg'))
        .filter(it => it.getBoundingClientRect().right > 360.5).map(it => it.outerHTML)"""
    )
    assert cut == []
    page.locator(".results button", has_text="test loss").first.click()
    assert page.locator(".results [aria-sort=ascending]").first.is_visible()


def test_the_night_is_dark_in_page_and_charts(opened, quickstart):
    page = opened(quickstart, color_scheme="dark")

    def brightness(selector, attribute):
        color = page.locator(selector).first.evaluate(f"it => getComputedStyle(it).{attribute}")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    for selector in ("body", ".card", "select", ".legend button"):
        assert brightness(selector, "backgroundColor") < 60
        assert brightness(selector, "color") > 150
    assert brightness(".chart .role-axis-label text", "fill") > 150
