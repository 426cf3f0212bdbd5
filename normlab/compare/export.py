"""Results as tables for other programs: a row a run, or a row a point of a curve; without JAX."""

import io
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from ..spec import displayed
from .store import (
    Failure,
    Result,
    Store,
    epochs_of,
    left_aside_in_words,
    write_whole,
)
from .tensorboard import NAME, Events, library

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{INFINITY}": r"$\infty$",
    "\N{EN DASH}": r"\textendash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_MARKDOWN = {"&": "&amp;", "<": "&lt;", **{sign: f"\\{sign}" for sign in "\\`*_|~$"}}
# A cell that begins so is a formula to a spreadsheet, which computes it; in full width, too.
_WIDE = (
    "\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
    "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
_FORMULA = rf"^([=+\-@\t\r\n{_WIDE}])"


Tell = Callable[[str], object]


def run_table(folder: str | Path, tell: Tell = warnings.warn) -> pl.DataFrame:
    """Returns one row a run of a study: where it stands, its values, its last metrics, its status.

    Args:
        folder: The study's.
        tell: Called with each line that says which files of runs cannot be used and why.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file that is not of a single run is damaged.
    """
    results, failures = _runs(Store(folder), tell)
    return results_table([*results, *failures])


def results_table(runs: Iterable[Result | Failure]) -> pl.DataFrame:
    """Returns one row a run, as `run_table` does, of runs that were read."""
    return frame(_row(it) for it in runs)


def curve_table(folder: str | Path, tell: Tell = warnings.warn) -> pl.DataFrame:
    """Returns one row a point of each run's curve; see `run_table` for arguments and errors."""
    rows = []
    for it in _runs(Store(folder), tell)[0]:
        curves = it.curve.flat()
        for place, step in enumerate(it.curve.step):
            where = {"epoch": epochs_of(step, it.steps_per_epoch), "step": step}
            rows.append(_place(it) | where | {name: curves[name][place] for name in curves})
    return frame(rows)


def probe_table(folder: str | Path, tell: Tell = warnings.warn) -> pl.DataFrame:
    """Returns one row a value that a probe found; see `run_table` for arguments and errors.

    Beside what says which run it is: `step`, `probe`, `quantity`, `of` (the layer, parameter or
    step that the value is of) and `value`.
    """
    store = Store(folder)
    rows = [
        _place(run)
        | {"step": it.step, "probe": it.probe, "quantity": quantity, "of": displayed(of)}
        | {"value": value}
        for run in _runs(store, tell)[0]
        for it in store.probes(run.id)
        for quantity, found in it.values.items()
        for of, value in found.items()
    ]
    return frame(rows)


def write_curves(folder: str | Path) -> None:
    """Writes the learning curves of all runs of a study to `metrics.parquet`."""
    path = Path(folder) / "metrics.parquet"
    content = io.BytesIO()
    # Who runs or reads the study has told which files cannot be used.
    curve_table(folder, lambda _: None).write_parquet(content)
    write_whole(path, content.getvalue())


def to_csv(table: pl.DataFrame) -> str:
    """Returns a table as CSV, in which a spreadsheet finds nothing to compute.

    A text that would be taken for a formula has an apostrophe before it; numbers are left alone.
    """
    safe = table.with_columns(pl.col(pl.String).str.replace(_FORMULA, "'${1}"))
    return safe.rename(lambda name: re.sub(_FORMULA, r"'\1", name)).write_csv()


def to_latex(table: pl.DataFrame, *, left: Collection[str] | None = None) -> str:
    """Returns a table as LaTeX, for the package booktabs.

    Args:
        table: The table.
        left: Columns whose cells stand at the left; by default those of words.
    """
    # After the end of a row, a bracket or a star would be an argument of that end.
    head, *body = [
        ("{}" if row[0].startswith(("[", "*")) else "") + " & ".join(row) + r" \\"
        for row in _cells(table, _latex)
    ]
    columns = "".join("l" if it else "r" for it in _at_left(table, left))
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end, ""])


def to_markdown(table: pl.DataFrame, *, left: Collection[str] | None = None) -> str:
    """Returns a table as Markdown has them on GitHub; for `left` see `to_latex`."""
    head, *body = [f"| {' | '.join(row)} |" for row in _cells(table, _markdown)]
    line = "| " + " | ".join("---" if it else "---:" for it in _at_left(table, left)) + " |"
    return "\n".join([head, line, *body, ""])


def _cells(table: pl.DataFrame, escape: Callable[[Any], str]) -> list[list[str]]:
    rows = [table.columns, *table.iter_rows()]
    return [[escape("" if it is None else it) for it in row] for row in rows]


def _at_left(table: pl.DataFrame, left: Collection[str] | None) -> list[bool]:
    if left is None:
        return [not kind.is_numeric() for kind in table.dtypes]
    return [name in left for name in table.columns]


def write_tensorboard(folder: str | Path, to: Path, tell: Tell = warnings.warn) -> None:
    """Writes the learning curves of each run as TensorBoard's events, in a folder of its own.

    A file that was written before is replaced, since TensorBoard shows all that a folder has. The
    time of an event is the one within the run, in seconds.

    Raises:
        UserError: tensorboardX is not installed.
        WriteError: The system refused.
        NoStudyError: The folder holds no study.
        StoreError: A file that is not of a single run is damaged.
    """
    library(_ASKED)  # before anything is read
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / NAME
        for result in _runs(Store(folder), tell)[0]:
            of_step = result.seconds / max(1, result.steps)
            events, curves = Events(path, _ASKED), result.curve.flat()
            for place, step in enumerate(result.curve.step):
                events.add(step, step * of_step, {name: it[place] for name, it in curves.items()})
            events.close()
            write_whole(to / result.id / NAME, path.read_bytes())


_ASKED = "--format tensorboard"


def _runs(store: Store, tell: Tell) -> tuple[list[Result], list[Failure]]:
    """The runs that belong to the study, each where it stands in it now."""
    store.config()  # refuses what is no study
    plan = store.plan()
    results, failures = store.results(), store.failures()
    for line in left_aside_in_words(store.left_aside):
        tell(line)
    if plan is not None:
        results = [it.labelled(plan[it.id]) for it in results if it.id in plan]
    return results, failures


def _place(run: Result | Failure) -> dict[str, Any]:
    """Where a run stands, and the values chosen for it, by their paths."""
    return {
        "id": run.id,
        "phase": run.phase,
        "arm": displayed(run.arm),
        "task": displayed(run.task),
        "seed": run.seed,
        **{displayed(path): _shown(value) for path, value in {**run.levels, **run.values}.items()},
    }


def _shown(value: Any) -> Any:
    """A value as a terminal can have it, for which some characters are commands."""
    return displayed(value) if isinstance(value, str) else value


def _row(run: Result | Failure) -> dict[str, Any]:
    if isinstance(run, Failure):
        return _place(run) | {"status": "failed"}
    last = {name: (curve or [None])[-1] for name, curve in run.curve.flat().items()}
    tested = {f"test_{name}": (run.test or {}).get(name) for name in run.curve.train}
    length = {"steps": run.steps, "epochs": run.epochs, "seconds": run.seconds}
    return (
        _place(run)
        | last
        | tested
        | length
        | {"status": "stopped early" if run.until else run.status}
    )


def frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Puts rows together whose columns may be missing, or hold numbers here and words there."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pl.DataFrame([_column(name, values) for name, values in columns.items()])


_BITS = 63  # of the whole numbers that tables have


def _column(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    large = any(isinstance(value, int) and value.bit_length() > _BITS for value in values)
    if kinds == {int, float} and not large:
        values = [value if value is None else float(value) for value in values]
    elif len(kinds) > 1 or kinds & {list, dict} or large:
        values = [value if value is None else json.dumps(value) for value in values]
    return pl.Series(name, values)


def _latex(value: Any) -> str:
    escaped = "".join(_LATEX.get(sign, sign) for sign in _text(value))
    return re.sub("-(?=-)", "-{}", escaped)  # Two hyphens would become a dash.


def _markdown(value: Any) -> str:
    escaped = "".join(_MARKDOWN.get(sign, sign) for sign in _text(value))
    return escaped.replace("](", "]\\(")  # which would be a link


def _text(value: Any) -> str:
    """A value in one line."""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
