"""What the programs of a study cost to compile, beside the plain Flax step of the same network.

    python experiments/benchmarks/compile.py

A call makes all programs of an arm from nothing, one after the other, and JAX itself reports what
tracing, lowering and compiling each of them took. normlab has three for an arm: initialization,
some steps of an epoch, and evaluation. Plain Flax has a step and an evaluation, and initializes
operation by operation. `others` are the small programs that JAX makes of single operations on the
way.

The last rows are the gradient of plain Flax's ResNet-8 with a batch of 128, with normlab's
convolution in the place of the library's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from interleaved import command_line, console, measure, save, spread
from rich.table import Table

CONFIGS = Path(__file__).parents[2] / "configs"
CASES = {
    "quickstart": ("none", "batch", "ghost16", "layer", "rms", "group"),
    "keras_cnn": ("batch", "none"),
    "resnet8_gradient": ("batch",),
}
STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
NAMED = ("initialize", "advance", "evaluate", "step", "gradient")


class Case(NamedTuple):
    study: str
    arm: str


def _cold(build: Callable[[], None]) -> Callable[[], dict[str, Any]]:
    """What building costs each time, by program and stage."""
    import jax

    told: list[tuple[str, str, float]] = []

    def note(event: str, seconds: float, fun_name: str = "", **_: Any) -> None:
        if event in STAGES:
            name = fun_name.removeprefix("jit(").removesuffix(")").lstrip("_")
            told.append((name if name in NAMED else "others", STAGES[event], seconds))

    jax.monitoring.register_event_duration_secs_listener(note)

    def work() -> dict[str, Any]:
        jax.clear_caches()
        told.clear()
        build()
        stages = dict.fromkeys(("programs", *STAGES.values()), 0.0)
        found = {name: dict(stages) for name in dict.fromkeys(name for name, *_ in told)}
        for name, stage, seconds in told:
            found[name][stage] += seconds
            found[name]["programs"] += stage == "compile"
        return found

    return work


def _loaded(case: Case) -> tuple[Any, Any]:
    """The study, and data of the shapes that it has."""
    import training

    from normlab.config import load_study
    from normlab.data import load

    study = load_study(CONFIGS / f"{case.study}.yaml")
    if case.study == "quickstart":
        return study, load(study.data)
    # As many as keep every shape but that of the data set.
    return study, training.random_dataset(10 * study.data.batch_size)


def normlab(case: Case) -> Callable[[], dict[str, Any]]:
    from normlab.models import network_of
    from normlab.train import Programs, Resident, place

    if case.study == "resnet8_gradient":
        from normlab.models.convolution import convolution

        return _gradient(convolution)
    study, dataset = _loaded(case)
    norm = study.variants[case.arm].constructor()
    batch_size = study.data.batch_size

    def build():
        model = study.model.build(norm, dataset.classes, study.train.precision)
        placed = place(dataset, batch_size)
        feed = Resident(placed, batch_size, study.train.augmentation, study.train.precision)
        network = network_of(model)
        Programs(network, study.objective, feed, study.optimizer, study.train).compile()

    return _cold(build)


def flax(case: Case) -> Callable[[], dict[str, Any]] | None:
    import jax
    import jax.numpy as jnp
    import optax
    import plain_flax

    if case.study == "resnet8_gradient":
        return _gradient(jax.lax.conv_general_dilated)
    if case == Case("keras_cnn", "none"):
        return None
    study, dataset = _loaded(case)
    spec, batch_size = study.optimizer, study.data.batch_size
    if case.study == "quickstart":
        model: Any = plain_flax.MLP(case.arm)
        steps = study.train.epochs * (len(dataset.train) // batch_size)
        schedule = optax.cosine_decay_schedule(spec.learning_rate, steps)
        transformation = optax.sgd(schedule, spec.momentum)
    else:
        model = plain_flax.CNN()
        transformation = optax.adam(spec.learning_rate, eps=spec.epsilon)
    images = jnp.asarray(dataset.images, jnp.float32)
    labels = jnp.asarray(dataset.labels)
    held_out = images[dataset.validation], labels[dataset.validation]
    batch = jnp.arange(batch_size)

    def build():
        state = plain_flax.initialize(model, transformation, jax.random.key(0), images)
        jax.jit(plain_flax.step, donate_argnums=0).lower(state, images, labels, batch).compile()
        jax.jit(plain_flax.evaluate).lower(state, *held_out).compile()

    return _cold(build)


def _gradient(convolution: Callable[..., Any]) -> Callable[[], dict[str, Any]]:
    import jax
    import jax.numpy as jnp
    import optax
    import plain_flax

    model = plain_flax.ResNet8(convolution)
    images = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((128,), jnp.int32)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True)
    )

    def gradient(params, batch_stats, images, labels):
        def loss_of(params):
            given = {"params": params, "batch_stats": batch_stats}
            logits, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        return jax.grad(loss_of, has_aux=True)(params)

    arguments = variables["params"], variables["batch_stats"], images, labels
    return _cold(lambda: jax.jit(gradient).lower(*arguments).compile() and None)


PEERS = {"normlab": normlab, "flax": flax}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--studies", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--name", default="compile", help="of the file of results")
    given = parser.parse_args()

    cases = [
        Case(study, arm)
        for study in given.studies
        for arm in CASES[study]
        if not given.arms or arm in given.arms
    ]
    peers = {name: PEERS[name] for name in given.peers}
    measured = measure(peers, cases, given.rounds, 1, warm_up=min(1, given.rounds - 1))
    rows = [
        {**case._asdict(), "programs": {peer: _middle(calls) for peer, calls in of_case.items()}}
        for case, of_case in zip(cases, measured, strict=True)
    ]
    results = {"rows": rows, "ratios": ratios(rows)}
    show(results)
    path = save(given.name, command_line(), results)
    console.print(f"\n{path}")


def _middle(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """How many programs, and the spread of the seconds of each stage, by name."""
    return {
        name: {
            "programs": int(calls[-1][name]["programs"]),
            **{stage: spread([call[name][stage] for call in calls]) for stage in STAGES.values()},
        }
        for name in calls[-1]
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of all stages, of normlab over plain Flax: of all that is made, and of the step.

    normlab's step lies in its program of several steps.
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if {"normlab", "flax"} <= set(row["programs"]):
            own, other = (_seconds(row["programs"][peer]) for peer in ("normlab", "flax"))
            step = {"advance": "step", "gradient": "gradient"}
            found[f"{row['study']} {row['arm']}"] = {
                "all": sum(own.values()) / sum(other.values()),
                **{one: own[one] / other[two] for one, two in step.items() if one in own},
            }
    return found


def _seconds(programs: dict[str, Any]) -> dict[str, float]:
    return {
        name: sum(it[stage]["median"] for stage in STAGES.values()) for name, it in programs.items()
    }


def show(results: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, title="median seconds")
    left = ("study", "arm", "peer", "program")
    for column in (*left, "count", *STAGES.values(), "together"):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row in results["rows"]:
        for peer, programs in row["programs"].items():
            together = _seconds(programs)
            for name, it in programs.items():
                stages = [f"{it[stage]['median']:.2f}" for stage in STAGES.values()]
                of_program = (name, str(it["programs"]), *stages, f"{together[name]:.2f}")
                table.add_row(row["study"], row["arm"], peer, *of_program)
    console.print(table)
    for name, of_case in results["ratios"].items():
        said = ", ".join(f"{what} {ratio:.2f}" for what, ratio in of_case.items())
        console.print(f"{name}, normlab over plain Flax: {said}")


if __name__ == "__main__":
    main()
