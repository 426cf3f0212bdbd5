"""The page of a study: one HTML file that needs no network, and its charts as SVG files."""

import contextlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from omegaconf import OmegaConf

from ..compare.store import write_whole
from ..process import cache_folder
from . import words
from .charts import Figure, figures, overview
from .numbers import numbers
from .study import Study, read_study
from .style import colors, style


def write_report(folder: str | Path) -> Path:
    """Writes the page and the charts of a study, be it finished or under way.

    Args:
        folder: What `normlab compare` wrote or is writing. Gets `report.html`, one file without
            links to others, `summary.json` with its numbers, and `charts/*.svg` for papers.

    Returns:
        The path of the page.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file is damaged, or runs come from different configurations.
    """
    study = read_study(folder)
    made = figures(study)
    charts = Path(folder) / "charts"
    for figure in made:
        svg = _svg(figure.specification(width=480, title=figure.title))
        write_whole(charts / f"{figure.name}.svg", svg)
    if study.done("final"):
        write_whole(charts / "overview.svg", _svg(overview(study)))
    write_whole(Path(folder) / "summary.json", numbers(study))
    page = Path(folder) / "report.html"
    write_whole(page, _html(study, made))
    return page


def _html(study: Study, made: list[Figure]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        study=study,
        summary=study.summary,
        ranked=sorted(study.summary.arms, key=words.rank),
        conclusion=words.conclude(study.summary),
        words=words,
        colors=colors(study),
        unfinished=_unfinished(study),
        tuned=_tuned(study),
        overridden=_overridden(study),
        config=OmegaConf.to_yaml(OmegaConf.create(study.config)),
        figures=made,
        charts={figure.name: _for_page(figure) for figure in made},
        style=style("var(--ink)", "var(--quiet)", "var(--line)", "transparent"),
        library=_library(),
    )


def _for_page(figure: Figure) -> dict[str, Any]:
    spec = figure.specification(width="container", description=figure.title)
    del spec["config"]  # The page has its own style, by day and by night.
    return {"spec": spec, "floors": dict(figure.floors)}


def _unfinished(study: Study) -> list[str]:
    said = [
        f"The study is not complete: {study.done(phase)} of {planned} {phase} runs are done."
        for phase, planned in study.planned.items()
        if study.done(phase) < planned
    ]
    if study.left_out:
        said.append(
            f"The folder holds {study.left_out} more runs, made with another configuration, device "
            "or version of a package. They are left out."
        )
    return said


def _tuned(study: Study) -> str:
    """The search space, as "learning_rate: 0.01, 0.1; ..."; empty when nothing is tuned."""
    return "; ".join(
        f"{path}: {', '.join(map(words.tuned_value, values))}"
        for path, values in study.tuned.items()
    )


def _overridden(study: Study) -> str:
    """What arms have for themselves, as "arm: model.field=value; ..."; empty for nothing."""
    told = {
        name: ", ".join(
            f"{part}.{field}={value}"
            for part in ("model", "optimizer")
            for field, value in arm.get(part, {}).items()
        )
        for name, arm in study.config["variants"].items()
    }
    return "; ".join(f"{name}: {fields}" for name, fields in told.items() if fields)


def _svg(spec: dict[str, Any]) -> str:
    # What only a pointer finds has no use here.
    for part in spec.get("hconcat", [spec]):
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
