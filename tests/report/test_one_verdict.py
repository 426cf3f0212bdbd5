"""A pair of arms has one verdict, one p-value and one number of seeds, wherever a study says any.

Random studies of 2 to 6 arms and 2 to 12 seeds, with ties, diverged and missing runs, tasks and
factors, are told in every way there is; all of it must come from one comparison of each pair.
"""

import csv
import html
import io
import json
import random
import re

import pytest
import vl_convert
from report.studies import QUICKSTART, draw_study
from rich.console import Console

from normlab.cli import app
from normlab.compare.store import Store
from normlab.inference.power import enough_pairs
from normlab.report import print_table, read_study, words, write_page, write_report
from normlab.report.verdicts import verdict_words
from normlab.report.view import views
from normlab.report.words import conclude
from normlab.results import read_results

OPPOSITE = {"better": "worse", "worse": "better"}


def draw_random_study(folder, number):
    """A study by chance; the same for a number each time."""
    draw = random.Random(number)
    names = draw.sample([*QUICKSTART], draw.randint(2, 6))
    variants = {name: dict(QUICKSTART[name]) for name in names}
    for fields in variants.values():
        fields["skill"] = draw.choice([0.95, 0.955, 0.98])
        fields["diverges"] = [0] if draw.random() < 0.15 else []
    options = {}
    if number % 3 == 1:
        options["tasks"] = {"digits": {}, "fashion": {"data.name": "fashion_mnist"}}
    if number % 3 == 2:
        options["factors"] = {"data.batch_size": [16, 64]}
    draw_study(
        folder, variants, tune={}, seeds=draw.randint(2, 12), epochs=4, study=folder.name, **options
    )
    store = Store(folder)
    store.write_config(store.config() | {"margin": draw.choice([None, 0.005, 0.05])})
    tied = set(draw.sample(names, 2)) if draw.random() < 0.5 else set(names if number == 0 else ())
    lost = draw.random() < 0.3
    for result in store.results():
        if result.test and result.variant in tied:
            exact = {"loss": 0.1, "accuracy": round(0.97 + 0.005 * (result.seed % 3), 3)}
            store.write(result.model_copy(update={"test": exact}))
        if lost and result.variant == names[-1] and result.seed == 1:
            next(folder.rglob(f"{result.id}.json")).unlink()
    return folder


def expected(view):
    """Two arms -> their comparison, in either order."""
    pairs = [(one.name, other.name) for one in view.arms for other in view.arms if one is not other]
    found = view.summary.pairs.compare(pairs)
    for (one, other), it in found.items():
        back = found[other, one]
        assert it.verdict == OPPOSITE.get(back.verdict, back.verdict)
        assert (it.adjusted_p, it.sign_flip_p) == (back.adjusted_p, back.sign_flip_p)
        interval = it.difference.interval
        if interval is not None:
            beside = interval[0] > 0 or interval[1] < 0
            assert beside == (it.adjusted_p <= it.level)
    return found


def check_conclusion(view):
    """Headline, belief, facts, sentences and numbers of seeds against the comparisons."""
    pairs, conclusion = expected(view), conclude(view.summary)
    for contest in view.summary.contests:
        for other, lead in contest.leads.items():
            assert lead == pairs[contest.best, other]
        if len(view.summary.contests) == 1 and contest.leads:
            shown = all(it.verdict == "better" for it in contest.leads.values())
            assert shown == (" won with " in conclusion.headline)
            assert shown != conclusion.headline.startswith("No variant is shown best")
            if len(contest.first) > 1:
                assert " tie " in conclusion.headline
    for fact in conclusion.facts:
        assert fact.comparison == pairs[fact.comparison.arm, fact.comparison.baseline]
        kinds = {"better": "yes", "equivalent": "no"}
        assert fact.belief == kinds.get(fact.comparison.verdict, "open")
    for arm in view.arms:
        if arm.comparison:
            assert arm.comparison == pairs[arm.name, view.summary.baselines[arm.name]]
            assert conclusion.comparisons[arm.name] == arm.comparison.sentence
    told = " ".join([conclusion.headline, conclusion.belief, *conclusion.remarks])
    told += " ".join(it.sentence for it in pairs.values())
    numbers = re.findall(r"Take (\d+):|; (\d+) seeds would show", told)
    enough = enough_pairs(view.summary.significance, view.summary.pairs.comparisons)
    assert {int(one or other) for one, other in numbers} <= {enough}
    for it in pairs.values():
        if it.verdict == "undecided" and it.needed is not None:
            assert it.needed > it.difference.count


def check_page(page, shown):
    """Table, sentences and other baselines of each view of a page."""
    content = page.read_text("utf-8")
    (line,) = re.findall(r"^const page = (.*);$", content, re.MULTILINE)
    data = json.loads(line)
    tables = re.findall(r'<table class="results">.*?</table>', content, re.DOTALL)
    told = html.unescape(content)
    for number, view in enumerate(shown):
        pairs = expected(view)
        variants = {arm.name: arm.variant for arm in view.arms}
        seen = set()
        for variant, of_arms in data["views"][number]["against"]:
            for name, found in of_arms.items():
                (other,) = [
                    it for it in variants if variants[it] == variant and (name, it) in pairs
                ]
                it = pairs[name, other]
                assert (found["verdict"], found["p"]) == (it.verdict, it.p_in_words)
                assert found["sentence"] == it.sentence
                # The exact test stands beside, by a name that is no verdict.
                assert found["beside"] == f"{words.EXACT_TEST}: {it.sign_flip_in_words}"
                seen.add((name, other))
        assert seen == set(pairs)
        if view.finals:
            rows = re.findall(r'<tr data-arm="([^"]*)">(.*?)</tr>', tables.pop(0), re.DOTALL)
            for name, row in rows:
                comparison = view.summary[html.unescape(name)].comparison
                cell = re.findall(r'data-key="verdict".*?<b class="(\w+)">.*?<small>(.*?)<', row)
                if comparison:
                    p = html.unescape(cell[0][1])
                    assert (cell[0][0], p) == (comparison.verdict, comparison.p_in_words)
                    title = re.findall(r'data-key="verdict"[^>]*><span title="([^"]*)"', row)
                    assert html.unescape(*title) == words.beside(comparison)
        conclusion = conclude(view.summary)
        for sentence in (
            conclusion.headline,
            *conclusion.remarks,
            *conclusion.comparisons.values(),
        ):
            assert sentence in told


@pytest.mark.parametrize("number", range(4))
def test_a_pair_has_one_verdict_wherever_it_is_told(tmp_path, monkeypatch, capsys, number):
    # The drawings say nothing, and take seconds.
    monkeypatch.setattr(vl_convert, "vegalite_to_svg", lambda *_, **__: "<svg/>")
    folder = draw_random_study(tmp_path / "one", number)
    other = draw_random_study(tmp_path / "two", number + 10)
    study = read_study(folder)
    shown = views([study])
    for view in shown:
        check_conclusion(view)
    check_page(write_report(folder), shown)

    arms = {it.name: it for it in study.summary.arms}
    verdicts = {name: it.comparison.sentence for name, it in arms.items() if it.comparison}
    assert read_results(folder).verdicts == verdicts
    console = Console(file=io.StringIO(), width=10_000)
    print_table(study.summary, console)
    for name, sentence in verdicts.items():
        assert f"  {sentence}\n" in console.file.getvalue()
        # The headline below the table may begin with the name, too.
        row, *_ = re.findall(rf"^{re.escape(name)} .*$", console.file.getvalue(), re.MULTILINE)
        assert f" {arms[name].comparison.verdict} " in f"{row} "

    app.cli(args=["export", str(folder), "--table", "csv"], prog="normlab")
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        if row.get("task"):
            continue
        it = arms[row["arm"]].comparison
        assert row["verdict"] == (it.verdict if it else row["verdict"] and "baseline")
        assert (row["p"] and float(row["p"])) == (it.adjusted_p if it else "")
        if it:
            ends = it.difference.interval or ("", "")
            found = row["difference_low"], row["difference_high"]
            assert tuple(end and float(end) for end in found) == ends
            assert float(row["exact_sign_flip_p_not_corrected"]) == it.sign_flip_p
    notebook = html.unescape(read_results(folder)._repr_html_())
    for it in arms.values():
        if it.comparison:
            assert f'title="{words.beside(it.comparison)}"' in notebook
    for row in verdict_words(study.summary).iter_rows(named=True):
        if row.get("task", "all together") == "all together" and (
            it := arms[row["arm"]].comparison
        ):
            assert it.p_in_words in (f"p {row['p']}", f"p = {row['p']}", row["p"])
            assert row["verdict"] == it.verdict

    written = json.loads((folder / "summary.json").read_text("utf-8"))
    assert written["conclusion"]["headline"] == conclude(study.summary).headline
    assert written["conclusion"]["comparisons"] == verdicts
    for arm in written["summary"]["arms"]:
        if arm["comparison"]:
            it = arms[arm["name"]].comparison
            told = (arm["comparison"]["verdict"], arm["comparison"]["adjusted_p"])
            assert told == (it.verdict, it.adjusted_p)
    for contest, of_study in zip(
        written["summary"]["contests"], study.summary.contests, strict=True
    ):
        for name, lead in contest["leads"].items():
            assert lead["verdict"] == of_study.leads[name].verdict
            assert lead["adjusted_p"] == of_study.leads[name].adjusted_p

    joined = views([read_study(folder), read_study(other)])
    for view in joined:
        check_conclusion(view)
    check_page(write_page([folder, other], tmp_path / "joint.html"), joined)
