"""The page of studies: one HTML file that needs no network, and its charts as SVG files."""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert

from ..compare.arm import in_words, short_names
from ..compare.export import results_table, to_csv
from ..compare.store import write_whole
from ..compare.summary import ArmSummary
from ..compare.yaml_text import escaped, to_yaml
from ..errors import UserError
from ..inference.measure import Measure
from ..inference.verdict import Comparison
from ..process import cache_folder
from . import words
from .charts import figures, overview
from .figure import MOST_BANDS, Figure, apart
from .numbers import numbers
from .study import Study, read_study
from .style import style
from .verdicts import verdict_numbers
from .view import View, differences, titles, views, why_apart


def columns(measure: Measure) -> dict[str, str]:
    """The columns of the table of results: key -> title."""
    return {
        "arm": "arm",
        "metric": measure.heading("test"),
        "difference": f"difference, {measure.noun}",
        "verdict": "verdict",
        "loss": "test loss",
        "steps": "steps to target",
        "values": "tuned",
        "seconds": "seconds a run",
        "diverged": "diverged",
    }


MOST_RUNS_HELD = 3000  # in a page that hands them out
MOST_REMARKS = 20  # that a reader takes in
MOST_TOLD = 6  # settings that tell joined studies apart
# As the table says and sorts them.
VERDICTS = {
    "worse": "▼ worse",
    "undecided": "? undecided",
    "equivalent": "≈ equivalent",
    "better": "▲ better",
}


def write_report(study: Study | str | Path) -> Path:
    """Writes the page and the charts of a study, be it finished or under way.

    Args:
        study: What `normlab compare` wrote or is writing, read or as its folder. This gets
            `report.html`, one file without links to others, `summary.json` with its numbers, and
            `charts/*.svg` for papers.

    Returns:
        The path of the page.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file is damaged, or runs come from different configurations.
    """
    if not isinstance(study, Study):
        study = read_study(study)
    page, charts, shown = study.folder / "report.html", study.folder / "charts", views([study])
    made = [figures(view.shown) for view in shown]
    pictures = _pictures(shown, made, charts)
    if study.done("final"):
        drawn = overview(shown[0], made[0], study.name, study.setting)
        pictures[charts / "overview.svg"] = drawn
    write_whole(study.folder / "summary.json", numbers(study))
    _write([study], shown, made, page, pictures)
    return page


def write_page(studies: Iterable[Study | str | Path], page: str | Path) -> Path:
    """Writes one page about one or several studies where it is wanted, and their charts beside it.

    Several studies are joined as if they were tasks of one, over the arms that have the same names
    in all of them; each is shown by itself as well.

    Args:
        studies: What `normlab compare` wrote or is writing, read or as folders.
        page: The file to write; of `joint.html` the charts lie in the folder `joint_charts`.

    Returns:
        The path of the page.

    Raises:
        NoStudyError: A folder holds no study.
        StoreError: A file is damaged, or runs come from different configurations.
        UserError: The file to write is a folder.
    """
    page = Path(page)
    refuse_folder(page)
    read = [it if isinstance(it, Study) else read_study(it) for it in studies]
    # A study that is given twice is one.
    apart = list({study.folder.resolve(): study for study in read}.values())
    shown = views(apart)
    made = [figures(view.shown) for view in shown]
    pictures = _pictures(shown, made, page.with_name(f"{page.stem}_charts"))
    _write(apart, shown, made, page, pictures)
    return page


def page_of(study: Study) -> str:
    """Returns the page of a study as HTML, and writes nothing."""
    shown = views([study])
    return _html([study], shown, [figures(view.shown) for view in shown])


def refuse_folder(page: Path) -> None:
    """Refuses a page that cannot be written, before studies are read that take long.

    Raises:
        UserError: It is a folder.
    """
    if page.is_dir():
        raise UserError(f"{page} is a folder; expected a file, as {page / 'report.html'}")


def _pictures(
    shown: Sequence[View], made: Sequence[list[Figure]], charts: Path
) -> dict[Path, dict[str, Any]]:
    """Where each chart goes as a file of its own -> the chart, as Vega-Lite has it."""
    pictures = {}
    # Beside these folders lies the overview.
    _, *folders = apart(["overview.svg", *(_file_name(view.title) for view in shown)])
    for drawn, name in zip(made, folders, strict=True):
        folder = charts / name if len(shown) > 1 else charts
        for figure in drawn:
            for axis, spec in figure.specifications(width=480, title=figure.title).items():
                first = axis == next(iter(figure.charts))
                name = figure.name if first else f"{figure.name}-by-{axis}"
                pictures[folder / f"{name}.svg"] = spec | {"datasets": figure.datasets}
    return pictures


def _write(
    studies: Sequence[Study],
    shown: Sequence[View],
    made: Sequence[list[Figure]],
    page: Path,
    pictures: Mapping[Path, dict[str, Any]],
) -> None:
    # Pictures are converted outside Python, which composes the page meanwhile.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        converted = threads.map(svg, pictures.values())
        text = _html(studies, shown, made)
        for path, picture in zip(pictures, converted, strict=True):
            write_whole(path, picture)
    write_whole(page, text)


def templates() -> jinja2.Environment:
    """The templates of the page and of its parts."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _html(studies: Sequence[Study], shown: Sequence[View], made: Sequence[list[Figure]]) -> str:
    factors = {path: levels for view in reversed(shown) for path, levels in view.factors.items()}
    unfinished = [line for study in studies for line in _unfinished(study, len(studies) > 1)]
    parts = [
        {
            "view": view.shown,
            "figures": drawn,
            "groups": _groups(view.shown),
            "conclusion": (conclusion := words.conclude(view.summary)),
            "remarks": _few([*unfinished, *conclusion.remarks]),
            "against": _against(view.shown),
        }
        for view, drawn in zip(shown, made, strict=True)
    ]
    return (
        templates()
        .get_template("page.html")
        .render(
            title=", ".join(dict.fromkeys(study.name for study in studies)),
            studies=studies,
            headings=_headings(studies),
            why_apart=why_apart(studies) if len(studies) > 1 else "",
            views=parts,
            looks=shown[0].looks,
            legend=_legend([view.shown for view in shown]),
            factors=factors,
            on_data=[path for path in factors if path.startswith("data.")],
            short=short_names(list(factors)),
            columns_of=columns,
            overridden=_overridden(studies),
            space_in_words=_space_in_words,
            points_in_words=_points_in_words,
            to_yaml=lambda config: to_yaml(escaped(config)),
            in_words=in_words,
            words=words,
            data=_data(parts, factors),
            files=_files(studies, shown[0]),
            library=_library(),
        )
    )


def _few(remarks: list[str]) -> list[str]:
    more = len(remarks) - MOST_REMARKS
    said = [f"{more} more remarks are in summary.json."] if more > 0 else []
    return [*remarks[:MOST_REMARKS], *said]


def _groups(view: View) -> dict[str, list[ArmSummary]]:
    """The levels in words -> the arms at them, best first."""
    return {
        it.name: sorted((view.summary[name] for name in it.arms), key=words.by_rank(view.summary))
        for it in view.summary.contests
    }


def _legend(shown: Sequence[View]) -> dict[str, list[str]]:
    """The levels in words -> the names of all arms at them, of whatever view."""
    legend: dict[str, dict[str, None]] = {}
    for view in shown:
        for contest in view.summary.contests:
            legend.setdefault(contest.name, {}).update(dict.fromkeys(contest.arms))
    return {levels: list(names) for levels, names in legend.items()}


def _headings(studies: Sequence[Study]) -> list[tuple[str, str, str]]:
    """Title, setting and what is not the same in all of them, of each study of a page."""
    apart = differences(studies, MOST_TOLD)
    settings = [study.setting for study in studies]
    return list(zip(titles(studies), settings, apart, strict=True))


def _files(studies: Sequence[Study], view: View) -> dict[str, str]:
    """Name -> content of the tables that the page hands out."""
    name = "-".join(dict.fromkeys(_file_name(study.name) for study in studies))
    files = {f"{name}-verdicts.csv": to_csv(verdict_numbers(view.summary))}
    if len(studies) == 1 and len(studies[0].results) <= MOST_RUNS_HELD:
        files[f"{name}-runs.csv"] = to_csv(results_table(studies[0].results))
    return files


def _data(parts: Sequence[dict[str, Any]], factors: dict[str, list[Any]]) -> dict[str, Any]:
    """What the scripts of the page know."""
    arms = {arm.name: arm for part in parts for arm in part["view"].arms}
    return {
        "style": style("var(--ink)", "var(--quiet)", "var(--line)", "transparent"),
        "mostBands": MOST_BANDS,
        "variants": {name: arm.variant for name, arm in arms.items()},
        "arms": {
            name: {
                path: levels.index(arm.levels[path])
                for path, levels in factors.items()
                if path in arm.levels
            }
            for name, arm in arms.items()
        },
        "views": [
            {
                "charts": [_for_page(figure, number) for figure in part["figures"]],
                "against": list(part["against"].items()),
            }
            for number, part in enumerate(parts)
        ],
    }


def _for_page(figure: Figure, view: int) -> dict[str, Any]:
    specs = figure.specifications(width="container")
    for spec in specs.values():
        del spec["config"]  # The page has its own style, by day and by night,
        for layer in spec["layer"]:  # and its buttons are the legend of all charts.
            for channel in {"color", "shape", "strokeDash"} & {*layer["encoding"]}:
                if layer["encoding"][channel].get("field") != "verdict":
                    layer["encoding"][channel]["legend"] = None
    bands = 0
    if any(layer["mark"]["type"] == "area" for spec in specs.values() for layer in spec["layer"]):
        bands = len(
            {row["arm"] for rows in figure.datasets.values() for row in rows if "arm" in row}
        )
    return {
        "id": f"{figure.name}-{view}-chart",
        "specs": specs,
        "datasets": figure.datasets,
        "floors": figure.floors,
        "bands": bands,
    }


def _against(view: View) -> dict[str, dict[str, dict[str, Any]]]:
    """Variant -> arm -> how it compares with this variant at the same levels."""
    by_place = {(arm.variant, str(arm.levels)): arm.name for arm in view.arms}
    asked = {
        variant: [
            (arm.name, by_place[variant, str(arm.levels)])
            for arm in view.arms
            if (variant, str(arm.levels)) in by_place
        ]
        for variant in dict.fromkeys(arm.variant for arm in view.arms)
    }
    # All at once, since the exact tests of many pairs share most of their work.
    compared = view.summary.pairs.compare(pair for pairs in asked.values() for pair in pairs)
    return {
        variant: {pair[0]: _comparison(compared[pair]) for pair in pairs if pair in compared}
        for variant, pairs in asked.items()
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "value": comparison.difference.value,
        "points": words.difference(comparison),
        "interval": words.interval_of(comparison),
        "verdict": comparison.verdict,
        "word": VERDICTS[comparison.verdict],
        "rank": list(VERDICTS).index(comparison.verdict),
        "p": comparison.p_in_words,
        "beside": words.beside(comparison),
        "sentence": comparison.sentence,
    }


def _unfinished(study: Study, named: bool) -> list[str]:
    which = f"The study {study.name}" if named else "The study"
    said = [
        f"{which} is not complete: {study.done(phase)} of {planned} {phase} runs are done."
        for phase, planned in study.planned.items()
        if study.done(phase) < planned
    ]
    if study.left_out:
        said.append(
            f"{which} has {study.left_out} more runs in its folder, made with another "
            "configuration, device or version of a package. They are left out."
        )
    return [*said, *study.left_aside, *study.unpaired]


def _points_in_words(study: Study) -> str:
    """How many points are tried, as "the same 5 points" where all variants try as many."""
    by_count: dict[int, list[str]] = {}
    for variant, count in study.points.items():
        by_count.setdefault(count, []).append(variant)
    if len(by_count) == 1:
        return f"the same {next(iter(by_count))} points"
    counts = [f"{count} ({words.listed(names)})" for count, names in by_count.items()]
    return f"as many points as there are for the fields of its layer, {words.listed(counts)},"


def _space_in_words(study: Study) -> str:
    """The search space, as "learning_rate: 0.01, 0.1; ..."."""
    return "; ".join(
        f"{path}: {study.ranges[path].low:g} to {study.ranges[path].high:g}, "
        f"{study.ranges[path].scale} scale"
        if path in study.ranges
        else f"{path}: {', '.join(map(words.tuned_value, values))}"
        for path, values in study.tuned.items()
    )


def _overridden(studies: Sequence[Study]) -> str:
    """What variants have for themselves, as "variant: model.field=value; ..."; empty for none."""
    told = {
        f"{name}: "
        + ", ".join(
            f"{part}.{field}={value}"
            for part in ("model", "optimizer")
            for field, value in variant.get(part, {}).items()
        )
        for study in studies
        for name, variant in study.config["variants"].items()
        if any(variant.get(part) for part in ("model", "optimizer"))
    }
    return "; ".join(sorted(told))


def _file_name(title: str) -> str:
    return re.sub(r"[^\w.-]+", "-", title)[:60].strip("-.") or "view"


def svg(spec: dict[str, Any]) -> str:
    """Draws a chart as papers have it."""
    # What only a pointer finds has no use here.
    for part in spec.get("hconcat") or spec.get("vconcat") or [spec]:
        if "layer" in part:
            part["layer"] = [it for it in part["layer"] if it["mark"].get("opacity") != 0]
    config = style("#1c2330", "#5b6472", "#e6e8ec", "white")
    return vl_convert.vegalite_to_svg(spec | {"config": config}, vl_version=_vega_lite_version())


def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, which takes a second to make and is kept."""
    name = f"vega-{version('vl-convert-python')}-{_vega_lite_version()}.js"
    path = cache_folder() / "page" / name
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    script = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=_vega_lite_version()
    )
    with contextlib.suppress(OSError):  # A home that cannot be written to makes it anew each time.
        write_whole(path, script)
    return script


def _vega_lite_version() -> str:
    # The version that Altair writes for, as vl-convert names it: v6.4.1 -> 6.4.
    return alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
