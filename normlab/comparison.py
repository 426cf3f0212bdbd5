"""Comparing from Python: a study in, its results out."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from .compare.environment import environment
from .compare.executors.processes import end_unguarded
from .compare.export import write_curves
from .compare.grid import rungs_of
from .compare.made import is_made, note_made, state
from .compare.run import Ending, run_study
from .compare.status import failures_in_words
from .compare.store import Store
from .compare.study import Study, StudyError
from .config import make_study
from .errors import refuse_stripped
from .inference.power import too_few
from .interrupts import Interrupts, StoppedError
from .process import every_character
from .progress import PipedConsole, StudyProgress
from .report import Study as StudyThere
from .report import read_study, write_report
from .results import Results

# What comes of a study, beside its runs.
_OUTCOME = ("metrics.parquet", "summary.json", "report.html", "charts")


def compare(
    study: Mapping[str, Any] | str | Path | Study,
    /,
    *,
    out: str | Path | None = None,
    **changes: Any,
) -> Results:
    """Tunes every variant of a study, repeats the best, and writes a page about it.

    Usage::

        results = normlab.compare("configs/quickstart.yaml", train={"epochs": 3}, seeds=4)
        results.verdicts["batch"]

    It is the command `normlab compare`: a study that was stopped goes on where it stood, and one
    that is done is read. What the command sets for its process, as compiled programs that are kept,
    a program of your own has after `eval "$(normlab settings)"`.

    Args:
        study: What a configuration says, as a mapping; or the path of one; or a checked study.
        out: Where results go; by default to `runs/STUDY`.
        **changes: Changes to the study, as `seeds=4`, `train={"epochs": 3}` or
            `**{"train.epochs": 3}`. An empty mapping empties, as `factors={}`.

    Returns:
        The results.

    Raises:
        ConfigError: The study has mistakes; it lists all of them.
        StudyError: The folder is another study's, a layer does not fit model or batch, or every
            run failed.
        DataError: The data set is not there or damaged.
        WriteError: Results cannot be written there.
    """
    refuse_stripped()
    end_unguarded()
    checked = make_study(study, changes)
    folder = Path(out or Path("runs") / checked.study)
    # In a notebook Rich would make an output of its own of each line.
    console = PipedConsole(markup=False, highlight=False, force_jupyter=False)
    command = shlex.join(["normlab", "compare", f"{folder / 'config.yaml'}", "--out", str(folder)])
    with every_character():
        ending = run(checked, folder, console, command)
    if not ending.done:
        first = "\n".join(failures_in_words(ending.failures[:1])[1:])
        raise StudyError(
            f"{len(ending.failures)} runs failed and none was made; the first:\n{first}\n"
            f"All of them, with tracebacks, are in {folder / 'failed'}."
        )
    write_outcome(folder)
    return Results(folder)


def write_outcome(folder: Path) -> StudyThere:
    """Writes curves, page and charts of a study, unless they are of what its folder has now.

    Returns:
        The study, read from its folder.
    """
    now = state(folder)
    study = read_study(folder)
    if not is_made(folder, now, _OUTCOME):
        write_curves(folder)
        write_report(study)
        note_made(folder, now, _OUTCOME)
    return study


def run(study: Study, folder: Path, console: Console, command: str) -> Ending:
    """Runs a study and tells how far it is; `write_outcome` writes what came of it.

    Args:
        study: The study.
        folder: Where results go.
        console: Where progress is told.
        command: The command that does the same, for the page and for who stops it.

    Raises:
        WriteError: Results cannot be written there.
        StoppedError: A signal says to stop, which is told with how to go on, and whoever handled
            the signal before does nothing; as a rule that ends the process, or raises
            KeyboardInterrupt.
        BrokenPipeError: Nobody reads what is printed, which is told likewise.
    """
    store = Store(folder)
    store.refuse_unwritable()
    store.sweep()
    if study.executor.name == "processes":
        # This process makes no runs, and leaves the memory of a GPU to those that do.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    arms = study.arms()
    points = sum(it.points for arm in arms for it in rungs_of(study, arm))
    tuning = points * (study.tune.seeds if study.tune else 0)
    runs = tuning + len(arms) * study.seeds
    console.print(f"{study.study}: {len(arms)} arms, {runs} runs, in {store.folder}")
    few = too_few(study.seeds, study.significance, study.comparisons)
    if few:
        console.print(f"Too few seeds. {few}", soft_wrap=True)

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True)

    progress = StudyProgress(console)

    def stopped() -> str:
        done = f"{progress.done} of {progress.total} runs are done and kept"
        return f"Stopped; {done}. To go on:\n  {command}"

    with Interrupts(stopped) as interrupts, progress:
        try:
            described = environment(command)
            ending = run_study(study, store, described, progress.advance, tell, interrupts.check)
        except StoppedError:
            progress.stop()
            tell(stopped())
            interrupts.told()
            raise
        except BrokenPipeError:
            Console(stderr=True, markup=False, highlight=False).print(
                f"Nobody reads what is printed. {stopped()}", soft_wrap=True
            )
            raise
    console.print(f"{ending.done} of {ending.planned} runs are done; {ending.here} made just now.")
    if ending.left_out:
        tell(
            f"{ending.left_out} finished runs in {store.folder / 'runs'} are not of the study as "
            "it is now; they are kept, and count again where they are asked for."
        )
    for line in failures_in_words(ending.failures):
        tell(line)
    return ending
