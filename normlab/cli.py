"""The command line of normlab: each command is a function of its name."""

import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from tyro.conf import Positional

from .errors import UserError, nearest, refuse_stripped, refused
from .interrupts import Interrupts, StoppedError, end_at_signals
from .modules import told
from .process import every_character, importing, settings, settle
from .progress import PipedConsole, duration, progress_bar
from .user_code import explained

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .catalog import FieldEntry
    from .compare.grid import Run
    from .compare.store import Result
    from .compare.workbench import Group, Workbench
    from .report import Study as StudyThere
    from .train import Record
    from .variants import Variant

# What a command needs is imported inside it: JAX takes seconds to start, and help, `report` and
# `data` do without.

Config = Annotated[Path, Positional, tyro.conf.arg(metavar="CONFIG")]
Overrides = Annotated[
    tuple[str, ...],
    Positional,
    tyro.conf.arg(metavar="[KEY=VALUE ...]", help_behavior_hint="(optional)"),
]
Folder = Annotated[
    Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/STUDY)")
]

app = tyro.extras.SubcommandApp()
console = PipedConsole(markup=False, highlight=False)


@app.command
def compare(config: Config, overrides: Overrides = (), /, *, out: Folder = None) -> None:
    """Tune every variant of a study, repeat the best, and write a page about it.

    Each variant is tuned on a validation split and repeated with its best values over fresh seeds,
    paired between variants. The end is a table and FOLDER/report.html. A study that was stopped
    goes on where it stood.

    Args:
        config: The study, a YAML file.
        overrides: Changes to it, as in train.epochs=5 or tune.seeds=1.
        out: Where results go.
    """
    settle()
    with importing():
        from .comparison import run, write_outcome
        from .config import load_study

    study = load_study(config, overrides)
    folder = out or Path("runs") / study.study
    ending = run(study, folder, console, _command_line())
    if ending.done:
        _show(write_outcome(folder))
    if ending.failures:
        sys.exit(1)


@app.command
def train(
    config: Config,
    overrides: Overrides = (),
    /,
    *,
    variant: str = "",
    seed: int = 0,
    out: Folder = None,
    save: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: not saved)")
    ] = None,
    coordinator: Annotated[
        str, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="(default: one process)")
    ] = "",
    num_processes: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    process_id: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
) -> None:
    """Train one variant of a study once.

    With --save it goes on where it stood, to the same numbers, if it was stopped or killed.

    Args:
        config: The study, a YAML file.
        overrides: Changes to it, as in optimizer.learning_rate=0.03.
        variant: Which variant, by its name in the study; by default the baseline.
        seed: Decides initial weights and order of examples.
        out: Where the result goes.
        save: Where checkpoints go and stay, every train.checkpoint_every steps or, by default, at
            each point of the curve: the last two, and the best of those at an evaluation.
            normlab.load reads the last.
        coordinator: Where process 0 of several that train the run together is found, or auto where
            Slurm, Open MPI or a cloud says it and the two below. All are started with this command.
        num_processes: How many there are, where no launcher of MPI says it; mesh is of all their
            devices.
        process_id: Which one this is, from 0, which tells and writes; likewise.
    """
    settle()
    with importing():
        from .compare.environment import environment
        from .compare.grid import single_run
        from .compare.kept import checkpoint_folder, sweep_checkpoints
        from .compare.loggers import refuse_missing
        from .compare.metric import measures_of
        from .compare.store import Store
        from .compare.workbench import Group, Workbench
        from .config import ConfigError, load_study
        from .train.processes import join

    several = bool(coordinator) or num_processes is not None or process_id is not None
    # What devices there are is known once the processes have come together.
    study = load_study(config, overrides, devices_are_here=not several)
    variant = variant or study.baseline
    if variant not in study.variants:
        problem = f"--variant: {variant!r} is no variant of it{nearest(variant, study.variants)}"
        raise ConfigError(str(config), [problem])
    if not 0 <= seed < 2**32:
        raise ConfigError(str(config), [f"--seed: {seed} is not between 0 and {2**32 - 1}"])
    store = Store(out or Path("runs") / study.study / "train")
    if store.plan() is not None:
        raise ConfigError(f"--out {store.folder}", ["holds a comparison; give another folder"])
    store.refuse_unwritable()
    refuse_missing(study.log)
    first = join(coordinator, num_processes, process_id)
    console.quiet = not first
    described = environment(_command_line())
    console.print(f"{study.study}: {variant}, seed {seed}, {described['device']}")
    resolved = study.model_dump(mode="json")
    measure, _ = measures_of(resolved)
    alone = measure.name == "loss"
    console.print("mean loss" if alone else f"mean loss and {measure.words}")

    def told(metrics: "Mapping[str, float | None]") -> str:
        loss, value = metrics["loss"], metrics.get(measure.name)
        of_loss = "not finite" if loss is None else f"{loss:.4f}"
        return of_loss if alone or value is None else f"{of_loss}  {measure.told(value)}"

    def show(_: "Run", record: "Record") -> None:
        validation = f"   validation {told(record.validation)}" if record.validation else ""
        console.print(f"step {record.step:6}   train {told(record.train)}{validation}")

    arm = next(arm for arm in study.arms() if arm.variant == variant)
    group = Group((single_run(study, arm, seed),), 1)
    bench = Workbench(described, folder=store.folder)
    every, names = study.train.checkpoint_every, [bench.name(run) for run in group.runs]
    if save is None and every is None:
        (result,) = bench.execute(group, show)
    else:
        saved = save or checkpoint_folder(store.folder, names)
        result = _train_saved(bench, group, show, every, saved)
    if not first:
        return
    store.write_config(resolved)
    store.write_environment(described)
    store.write(result)
    sweep_checkpoints(store.folder, names)
    if result.test is None:
        console.print(f"Diverged: the loss at step {result.steps} is not finite.")
    else:
        console.print(f"test          {told(result.test)}   {result.seconds:.1f} s")
    console.print(f"Result: {store.folder / 'runs' / result.id}.json")


def _train_saved(
    bench: "Workbench",
    group: "Group",
    show: "Callable[[Run, Record], None]",
    every: int | None,
    folder: Path,
) -> "Result":
    """Trains a run with checkpoints, and goes on from the last one that is there."""
    from .compare.kept import Saving, alone_in
    from .train.checkpoint import steps_in
    from .train.processes import any_of_all, leave

    def stopped() -> str:
        there = steps_in(folder)
        where = f"it is saved up to step {there[-1]}, in {folder}" if there else "nothing is saved"
        return f"Stopped; {where}. To go on:\n  {_command_line()}"

    with alone_in(folder), Interrupts(stopped) as interrupts:

        def asked() -> bool:
            # Where one of several processes is asked to stop, all stop at the same step.
            if stop := any_of_all(interrupts.asked()):
                interrupts.ask()
            return stop

        saving = Saving(folder, every, asked, _warn, keep_best=True)
        if there := steps_in(folder):
            console.print(f"There are checkpoints in {folder}, the last of step {there[-1]}.")
        try:
            (result,) = bench.execute(group, show, saving)
        except StoppedError:
            leave()
            raise
    return result


@app.command
def report(
    folders: Annotated[tuple[Path, ...], Positional, tyro.conf.arg(metavar="FOLDER [FOLDER ...]")],
    /,
    *,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: report.html)")
    ] = None,
) -> None:
    """Print the table of a study and write its page anew, or join several on one page.

    Several studies are joined as if they were tasks of one: over the arms that have the same names
    in all of them, each study weighing the same. Of a folder of studies, as of runs, the studies
    are listed.

    Args:
        folders: Where `normlab compare` left its results.
        out: The page, and FILE_charts beside it; by default in the folder of the one study, or here
            for several.
    """
    if not folders:
        raise UserError("expected the folder of a study, or several")
    from .report import read_study

    if len(folders) == 1 and out is None:
        from .compare.store import is_study, studies_in
        from .report import write_report

        if not is_study(folders[0]) and (there := studies_in(folders[0])):
            _list_studies(there)
        else:
            study = read_study(folders[0])
            write_report(study)
            _show(study)
        return
    from .report import print_table, write_page
    from .report.page import refuse_folder
    from .report.view import joined, titles, why_apart

    refuse_folder(out or Path("report.html"))
    studies = [read_study(folder) for folder in folders]
    page = write_page(studies, out or Path("report.html"))
    if together := joined(studies):
        console.print("\nall studies together", style="bold")
        print_table(together[1], console)
    else:
        console.print(why_apart(studies) if len(studies) > 1 else "")
    for name, study in zip(titles(studies), studies, strict=True):
        console.print(f"\n{name}", style="bold")
        print_table(study.summary, console)
    console.print(f"Page: {page}")


@app.command
def status(folder: Annotated[Path, Positional, tyro.conf.arg(metavar="FOLDER")], /) -> None:
    """Show how far a study is: runs done, running, failed, diverged and left, by arm.

    Args:
        folder: Where `normlab compare` leaves its results.
    """
    from .compare.status import failures_in_words, read_status

    now = read_status(folder)
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", overflow="fold")
    for column in ("planned", "done", "diverged", "failed", "running", "left"):
        table.add_column(column, justify="right")
    for name, it in [*now.arms.items(), ("all", now.total)]:
        counts = (it.planned, it.done, it.diverged, it.failed, it.running, it.left)
        table.add_row(name, *map(str, counts), end_section=name != "all")
    console.print(table)
    if now.total.left and now.seconds_left is not None:
        at_a_time = f"{max(1, now.total.running)} at a time"
        console.print(f"time left: about {duration(now.seconds_left)}, with {at_a_time}")
    if now.total.left and not now.total.running:
        console.print(f"Nothing is running. To go on:\n  {now.command}", soft_wrap=True)
    for line in [*failures_in_words(now.failures), *now.left_aside]:
        console.print(line, soft_wrap=True)


@app.command
def watch(
    folder: Annotated[Path, Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    *,
    page: bool = False,
) -> None:
    """Show how far a study or a run is, with its curves, until it is finished.

    Files are read alone, so that it may be on another machine that shares the folder.

    Args:
        folder: Where `normlab compare` leaves its results, or `normlab train --save` a run.
        page: Serve the page as well, to this machine alone and until Ctrl-C, and make it anew as
            results come in.
    """
    from .watch import EVERY, Watched, page_of
    from .watch import watch as watch_folder

    if not page:
        watch_folder(folder, console)
        return
    from .serve import served

    watched = Watched(folder)
    watched.look()  # tells what is wrong with it
    with served(lambda: page_of(folder), watched.state) as there:
        console.print(f"Page: {there.address}")
        watch_folder(folder, console)
        console.print(f"The page stays at {there.address} until Ctrl-C.")
        # What draws charts has the system go on with a wait that a signal interrupted.
        while True:
            time.sleep(EVERY)


@app.command
def export(
    folder: Annotated[Path, Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    *,
    format: Annotated[
        Literal["csv", "latex", "markdown", "parquet", "tensorboard"] | None,
        tyro.conf.arg(help_behavior_hint="(default: csv)"),
    ] = None,
    table: Literal["csv", "latex", "markdown"] | None = None,
    probes: bool = False,
    to: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: printed)")
    ] = None,
) -> None:
    """Print or write one row a run: arm, task, levels, seed, chosen values, metrics, status.

    With --table it is one row an arm instead: the metric, difference to the baseline, verdict. With
    --probes it is one row a value that a probe found: run, step, probe, quantity, of which layer.

    Args:
        folder: Where `normlab compare` left its results.
        format: csv, latex, markdown and parquet are files; tensorboard is a folder of curves. What
            is parquet or tensorboard cannot be printed.
        table: The table of verdicts: csv with all digits, latex and markdown as papers have them.
        probes: What the study's probes found.
        to: The file or folder.
    """
    from .compare.export import (
        probe_table,
        run_table,
        to_csv,
        to_latex,
        to_markdown,
        write_tensorboard,
    )
    from .compare.store import write_whole

    if table and format:
        raise UserError(
            f"--table {table} --format {format}: the one is a row an arm, the other a row a run; "
            "leave out one of the two"
        )
    if probes and (table or format == "tensorboard"):
        given = f"--table {table}" if table else "--format tensorboard"
        raise UserError(
            f"--probes {given}: what probes found is one table; leave out one of the two"
        )
    form = table or format or "csv"
    if to is None and form in ("parquet", "tensorboard"):
        raise UserError(f"--format {form} cannot be printed; add --to PATH")
    if form == "tensorboard":
        assert to is not None
        if to.is_file():
            raise UserError(f"--to {to} is a file; expected a folder")
        write_tensorboard(folder, to, _warn)
        console.print(f"Written: {to}", soft_wrap=True)
        return
    if to is not None and to.is_dir():
        raise UserError(f"--to {to} is a folder; expected a file, as {to / folder.name}.{form}")
    content: str | bytes
    if table:
        from .report import read_study
        from .report.verdicts import LEFT, verdict_numbers, verdict_words

        study = read_study(folder)
        summary = study.summary
        for line in study.left_aside:
            _warn(line)
        if form == "csv":
            content = to_csv(verdict_numbers(summary))
        else:
            write = {"latex": to_latex, "markdown": to_markdown}[form]
            content = write(verdict_words(summary), left=LEFT)
    else:
        rows = (probe_table if probes else run_table)(folder, _warn)
        if probes and rows.is_empty():
            raise UserError(
                f"{folder} has no probes; give the study some, as in "
                "probes: {activations: {every: 100}}, and run it again"
            )
        if form == "parquet":
            file = io.BytesIO()
            rows.write_parquet(file)
            content = file.getvalue()
        else:
            content = {"csv": to_csv, "latex": to_latex, "markdown": to_markdown}[form](rows)
    if to is None:
        # What takes the output reads it as a file, where nothing is escaped.
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(str(content))
    else:
        write_whole(to, content)
        console.print(f"Written: {to}", soft_wrap=True)


@app.command
def cost(
    config: Config,
    overrides: Overrides = (),
    /,
    *,
    target: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="TARGET ...", help_behavior_hint="(default: this machine)"),
    ] = (),
    examples_per_chip: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: data.batch_size)")
    ] = None,
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/STUDY/cost)"),
    ] = None,
) -> None:
    """Estimate what a training step of each variant costs, on devices that need not be here.

    Each variant's step is compiled, not run: memory traffic, memory, work, and exchanges between
    devices are read off the program. The end is a table, FOLDER/cost.json and FOLDER/cost.svg.

    Args:
        config: The study, a YAML file.
        overrides: Changes to it, as in data.batch_size=256.
        target: cpu, gpu or gpu:8 for devices of this machine; tpu:v5e:4x4 for a TPU slice, which
            the extra normlab[tpu-cost] compiles for without one.
        examples_per_chip: Examples that each device has of a batch.
        out: Where results go.
    """
    settle(keep_programs=False)
    from .config import load_study
    from .cost.files import write_costs
    from .cost.step import study_cost
    from .cost.table import print_costs
    from .cost.targets import find_target, local_targets
    from .report.style import BASELINE_COLOR, COLORS, style

    study = load_study(config, overrides, devices_are_here=False)
    if examples_per_chip is not None and examples_per_chip < 1:
        raise UserError(f"--examples-per-chip {examples_per_chip}: expected 1 or more")
    targets = [find_target(name) for name in dict.fromkeys(target or local_targets())]
    folder = out or Path("runs") / study.study / "cost"
    with progress_bar(console) as progress:
        bar = progress.add_task("compiling", total=len(study.arms()) * len(targets))
        costs = study_cost(
            study,
            targets,
            examples_per_chip,
            lambda compiled: progress.update(bar, description=compiled, advance=1),
        )
    look = style("#1c2330", "#5b6472", "#e6e8ec", "white")
    write_costs(costs, study, examples_per_chip, folder, (BASELINE_COLOR, *COLORS), look)
    print_costs(costs, console)
    console.print(f"Figures: {folder / 'cost.json'}  Chart: {folder / 'cost.svg'}")


@app.command(name="list")
def list_names(
    variant: Annotated[
        str, Positional, tyro.conf.arg(metavar="[VARIANT]", help_behavior_hint="(optional)")
    ] = "",
    /,
    *,
    modules: tuple[str, ...] = (),
) -> None:
    """List what a study can name, or show one variant: formula, fields, an example.

    Args:
        variant: A variant to show whole, as in normlab list batch_renorm.
        modules: Modules or files that register variants, models or data of your own, as in a study.
    """
    from .config import import_modules

    import_modules(modules, Path(), "--modules")
    if variant:
        _show_variant(variant)
        return
    from typing import get_args

    from .catalog import WRAPPERS, variables
    from .data import DataSpec
    from .models import MODELS
    from .objectives import OBJECTIVES
    from .train import OptimizerSpec, TrainSpec
    from .variants import COSTS, VARIANTS

    table = Table(box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for column in ("statistics over", "keeps", "cost", "source"):
        table.add_column(column, overflow="fold")
    for name, entry in VARIANTS.items():
        held = variables(entry)
        keeps = "not known" if held is None else ", ".join(held.get("batch_stats", {}))
        table.add_row(name, entry.statistics, keeps, entry.cost, entry.source)
    console.print(table)
    console.print("\ncost, beside reading the input and writing the result:")
    for cost, meaning in COSTS.items():
        console.print(f"  {cost:<10}{meaning}")
    console.print(f"\naround other layers: {', '.join(WRAPPERS)}")
    console.print(
        "\nnormlab list VARIANT shows one: formula, fields, an example. Besides its own fields an "
        "arm may have model: {...} and optimizer: {...}, which differ for it alone."
    )
    for title, specs in {
        "model": MODELS.values(),
        "objective": OBJECTIVES.values(),
        "optimizer": get_args(get_args(OptimizerSpec)[0]),
        "data": (DataSpec,),
        "train": (TrainSpec,),
    }.items():
        console.print(f"\n{title}", style="bold")
        for spec in specs:
            fields = dict(spec.model_json_schema()["properties"])
            name = fields.pop("name", {})
            names = name.get("enum", [name["const"]] if "const" in name else [])
            if names:
                console.print(f"  {', '.join(names)}")
            _print_indented(", ".join(map(_field, fields.items())))


def _show_variant(name: str) -> None:
    from .catalog import WRAPPERS, field_entries, other_fields, summary, variables
    from .variants import COSTS, VARIANTS

    known = VARIANTS | WRAPPERS
    if name not in known:
        raise UserError(f"{name!r} is no variant{nearest(name, known)}")
    variant = known[name]
    facts = {
        "formula": variant.formula,
        "source": variant.source,
        "statistics": variant.statistics,
        "cost": COSTS.get(variant.cost, variant.cost),
    }
    held = variables(variant) if name in VARIANTS else None
    if held is not None:
        for fact, collection in (("learns", "params"), ("keeps", "batch_stats")):
            entries = held.get(collection, {}).items()
            facts[fact] = ", ".join(f"{it} {shape}" for it, shape in entries) or "nothing"
    console.print(f"{name}: {summary(variant)}".removesuffix(": "), style="bold")
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in facts.items():
        table.add_row(*row)
    console.print(Padding(table, (1, 0)))
    table = Table(box=None, pad_edge=False)
    table.add_column("field", no_wrap=True)
    for column in ("default", "meaning"):
        table.add_column(column, overflow="fold")
    entries = field_entries(variant)
    for entry in entries:
        table.add_row(*entry)
    console.print(table)
    if others := other_fields(variant):
        console.print(f"\nin Python also: {', '.join(others)}")
    for line in _example(variant, entries):
        console.print(line, soft_wrap=True)


def _example(variant: "Variant", entries: "list[FieldEntry]") -> list[str]:
    """Shows how a variant is used: in a study, or around another layer, and in a model."""
    module, layer = told(variant.layer.__module__), variant.layer.__name__
    layer = f"normlab.{layer}" if module.startswith("normlab.") else f"{module}.{layer}"
    if variant.cost == "inside":
        used = f"{layer}(normlab.LayerNorm)(x, condition)"
    elif variant.cost == "weights":
        moves = ", update_stats=train" if variant.name == "spectral_norm" else ""
        used = f"{layer}(nn.Dense(32))(x{moves})"
    else:
        settable = f", {entries[0].name}: {entries[0].default}" if entries else ""
        used = f"{layer}()(x, use_running_average=not train)"
        study = f"    mine: {{layer: {variant.name}{settable}}}"
        return ["\nin a study", "  variants:", study, "in a Flax model", f"  x = {used}"]
    return ["\nin a Flax model", f"  x = {used}"]


@app.command
def data(
    get: Annotated[
        tuple[str, ...],
        Positional,
        tyro.conf.arg(metavar="[get NAME ...]", help_behavior_hint="(optional)"),
    ] = (),
    /,
    *,
    to: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: NORMLAB_DATA)")
    ] = None,
    modules: tuple[str, ...] = (),
) -> None:
    """Show which data sets are there, and how to get the others; or get some.

    Args:
        get: Gets published sets from where they are published, and puts them where studies look.
            What was interrupted goes on where it stood.
        to: Where they go, each into a folder of its name.
        modules: Modules or files that register data of your own, as in a study.
    """
    if get:
        _get_data(get, to)
        return
    if to is not None:
        raise UserError(f"--to {to} is where sets go; name some, as in normlab data get mnist")
    if modules:
        from .config import import_modules

        import_modules(modules, Path(), "--modules")
    from .data import describe

    table = Table(box=None, pad_edge=False)
    for column in ("data set", "examples", "image", "found in, or how to get it"):
        table.add_column(column, overflow="fold")
    for listing in describe():
        table.add_row(
            listing.name,
            f"{listing.examples:,}" if listing.examples else "",
            "x".join(map(str, listing.image_shape or ())),
            listing.place or f"not found. {listing.remedy}",
        )
    console.print(table)


def _get_data(given: tuple[str, ...], to: Path | None) -> None:
    from .data import get

    what, *names = given
    if what != "get" or not names:
        raise UserError(f"{' '.join(given)}: expected get and names, as in normlab data get mnist")
    named = os.environ.get("NORMLAB_DATA")
    if to is None and not named:
        raise UserError(
            "neither --to FOLDER nor the variable NORMLAB_DATA, in which studies look, says where "
            "data go; as in: export NORMLAB_DATA=~/data"
        )
    root = (to or Path(named or "")).expanduser()
    for name in names:
        console.print(f"{name}: {get(name, root, console.print)}", soft_wrap=True)
    if to is not None and (not named or Path(named).expanduser().resolve() != root.resolve()):
        console.print(f"Studies look there with: export NORMLAB_DATA={shlex.quote(str(root))}")


@app.command
def experiments(
    names: Annotated[
        tuple[str, ...],
        Positional,
        tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(optional; all for each)"),
    ] = (),
    /,
    *,
    smoke: bool = False,
    pilot: Annotated[
        int | None, tyro.conf.arg(metavar="SEEDS", help_behavior_hint="(optional)")
    ] = None,
    rewrite: bool = False,
    out: Annotated[
        Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/experiments)")
    ] = Path("runs/experiments"),
) -> None:
    """List the claims that were put to the test, with their verdicts; or put some to it.

    In a clone of normlab: an experiment is a folder of experiments/ with a rule, and the study of
    its name in configs/. Its runs are made, or go on where they stood; the rule says what they
    mean; results, figure and READMEs are written.

    Args:
        names: Which to run; all for each. None lists them.
        smoke: Run them, or each where none is named, at the size of seconds, and keep nothing.
        pilot: Run only so many seeds of them, and print by how much the contrasts of the rule vary
            over these, and what the whole design could show; nothing of what they are.
        rewrite: Judge the kept results anew, and write figures, READMEs and the table from them.
        out: Where the studies of experiments go.
    """
    if names or smoke:
        settle()
    with importing():
        from .experiments import (
            chosen,
            make,
            plan,
            read_experiments,
            try_out,
            write_table,
            write_words,
        )

    there = read_experiments()
    asked = chosen(names or (("all",) if smoke or rewrite else ()), there)
    if pilot is not None:
        if smoke or rewrite or pilot < 2 or not asked:
            raise UserError(
                f"--pilot {pilot}: expected 2 seeds or more, the names of experiments that were "
                "not run yet, and neither --smoke nor --rewrite beside it"
            )
        for experiment in asked:
            found = plan(experiment, console, out / experiment.name, pilot)
            table = Table(box=None, pad_edge=False, title=experiment.name, title_justify="left")
            for column in ("prediction", "deviation", "could show"):
                table.add_column(column, overflow="fold")
            for prediction, spread, could in found:
                shown = "" if could is None else f"{could:.3g}{' times' * prediction.log}"
                table.add_row(prediction.says, f"{spread:.3g}", shown)
            console.print(table)
        return
    for experiment in asked:
        if smoke:
            verdict = try_out(experiment, console)
            console.print(f"{experiment.name}: {verdict.word} at smoke size, which says nothing")
        elif rewrite:
            write_words(experiment)
        else:
            verdict = make(experiment, console, out / experiment.name)
            console.print(f"{experiment.name}: {verdict.word}", style="bold")
    if asked and not smoke:
        write_table(there)
    if not smoke:
        table = Table(box=None, pad_edge=False)
        for column in ("experiment", "claim", "verdict"):
            table.add_column(column, overflow="fold")
        for it in there:
            verdict = it.verdict
            table.add_row(it.name, it.rule.claim, verdict.word if verdict else "not run")
        console.print(table)


@app.command
def advise(config: Config, overrides: Overrides = (), /) -> None:
    """Print what the experiments say about a study, each line with the result behind it.

    In a clone of normlab, whose experiments/ it reads.

    Args:
        config: The study, a YAML file.
        overrides: Changes to it, as in data.batch_size=8.
    """
    with importing():
        from .experiments import advice

    for line, why in advice(config, overrides):
        console.print(line.says, style="bold")
        console.print(Padding(f"{line.experiment}: {why}", (0, 0, 0, 4)))


@app.command(name="settings")
def print_settings() -> None:
    """Print the environment that these commands run in, for programs of your own.

    As in: eval "$(normlab settings)"; python train.py
    """
    for name, value in settings().items():
        console.print(f"export {name}={shlex.quote(value)}", soft_wrap=True)


def main() -> None:
    """Runs the command line; a user's mistake ends in a message and exit code 2."""
    end_at_signals()
    with every_character():
        _run()


def _run() -> None:
    try:
        refuse_stripped()
        app.cli(prog="normlab", description="Compare normalization layers on real training runs.")
        sys.stdout.flush()
    except UserError as error:
        _fail(error, str(error))
    except BrokenPipeError:  # Who reads the output, as `head` does, has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # What is written to a place that was given is told where it is.
        if error.errno is None:  # No refusal of the system, whatever raised it.
            raise
        place = Path(os.fsdecode(error.filename) if error.filename else "standard output")
        _fail(error, refused("used", place, error, "give another place"))
    except SystemExit as error:
        why = explained(error)
        if why.place:  # A user's code called it, and nothing was done.
            _fail(error, str(why))
        raise


def _fail(error: BaseException, told: str) -> NoReturn:
    """Ends with a message, below the traceback of what went wrong in the user's own code."""
    console = Console(stderr=True, markup=False, highlight=False)
    cause: BaseException | None = error
    while cause is not None:
        if traceback := explained(cause).traceback:
            console.print(traceback, end="", soft_wrap=True)
            break
        cause = cause.__cause__
    console.print(f"error: {told}", style="red", soft_wrap=True)
    sys.exit(2)


def _show(study: "StudyThere") -> None:
    """Prints the table of a study whose page is written."""
    from .report import print_table

    print_table(study.summary, console)
    for sentence in (*study.unpaired, *study.left_aside):
        console.print(sentence, soft_wrap=True)
    console.print(f"Page: {study.folder / 'report.html'}")


def _warn(line: str) -> None:
    """Tells a line beside what is printed for other programs."""
    Console(stderr=True, markup=False, highlight=False).print(line, soft_wrap=True)


def _list_studies(folders: Sequence[Path]) -> None:
    """Prints of each study how far it is and what came of it."""
    from .report import read_study
    from .report.words import conclude

    table = Table(box=None, pad_edge=False)
    for column in ("folder", "study", "runs", "outcome"):
        table.add_column(column, overflow="fold")
    for folder in folders:
        try:
            study = read_study(folder)
        except UserError as error:  # The others are listed all the same.
            table.add_row(str(folder), "", "", str(error))
            continue
        runs = f"{len(study.results)} of {sum(study.planned.values())}"
        table.add_row(str(folder), study.setting, runs, conclude(study.summary).headline)
    console.print(table)


def _print_indented(text: str) -> None:
    console.print(Padding(text, (0, 0, 0, 6)), style="dim")


def _command_line() -> str:
    return shlex.join(["normlab", *sys.argv[1:]])


def _field(item: tuple[str, Any]) -> str:
    """Says a field of a JSON schema in a few signs: its name, and choices or default."""
    name, schema = item
    if "enum" in schema:
        return f"{name}={'|'.join(map(str, schema['enum']))}"
    return f"{name}={schema['default']}" if "default" in schema else name
