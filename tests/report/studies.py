"""Folders of studies that never ran: curves drawn from formulas, for the tests of the report."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from compare.results import named

from normlab.compare.arm import Arm, arms
from normlab.compare.paths import with_values
from normlab.compare.store import Curve, Result, Store

QUICKSTART = {
    "none": {"layer": "identity", "skill": 0.935, "rate": 0.03, "limit": 0.1},
    "batch": {"layer": "batch_norm", "momentum": 0.9, "skill": 0.978, "rate": 0.1},
    "ghost16": {"layer": "ghost_batch_norm", "ghost_batch_size": 16, "skill": 0.981, "rate": 0.1},
    "layer": {"layer": "layer_norm", "skill": 0.966, "rate": 0.05},
    "rms": {"layer": "rms_norm", "skill": 0.964, "rate": 0.05},
    "group": {"layer": "group_norm", "num_groups": 8, "skill": 0.961, "rate": 0.3},
}
RATES = {"optimizer.learning_rate": [0.003, 0.01, 0.03, 0.1, 0.3]}
SOMETIMES_DIVERGED = {
    "none": QUICKSTART["none"],
    "batch": QUICKSTART["batch"] | {"diverges": [1, 2]},
}
WITH_FACTOR = {
    "study": "batch_size",
    "variants": {name: QUICKSTART[name] for name in ("none", "batch", "ghost16", "layer")},
    "factors": {"data.batch_size": [16, 64, 256]},
    "tune_seeds": 1,
}
WITH_TASKS = {
    "study": "two_sets",
    "variants": {name: QUICKSTART[name] for name in ("none", "batch", "layer", "group")},
    "tasks": {"digits": {}, "fashion": {"data.name": "fashion_mnist"}},
    "tune_seeds": 1,
}
TEN_BY_TWENTY = {
    "study": "ten_by_twenty",
    "variants": QUICKSTART
    | {
        f"a_longer_name_{place}": QUICKSTART["batch"] | {"skill": 0.95 + 0.003 * place}
        for place in range(4)
    },
    "seeds": 20,
    "epochs": 200,
    "tune_seeds": 1,
}
HURTFUL = {
    "study": "<script>alert(1)</script>",
    "variants": {
        "<script>alert(2)</script>": QUICKSTART["none"],
        "</script><img src=x onerror=alert(3)>": QUICKSTART["batch"],
        "a'\"&{{ 7 * 7 }}${b}": QUICKSTART["batch"],
    },
    "factors": {"model.<img src=x onerror=alert(4)>": ["</script><b onclick=alert(5)>", "'\"&"]},
    "tasks": {"<svg onload=alert(6)>": {}, "]]>\u2028<!--": {}},
    "tune": {"optimizer.<i>\"'[0]": [0.1, 0.3]},
    "tune_seeds": 1,
    "seeds": 6,
    "epochs": 4,
}
DRAWN = {"skill", "rate", "limit", "diverges"}


def draw_study(
    folder: Path,
    variants: Mapping[str, Mapping[str, Any]] = QUICKSTART,
    tune: Mapping[str, Sequence[float]] = RATES,
    *,
    study: str = "quickstart",
    optimizer: str = "sgd",
    factors: Mapping[str, Sequence[Any]] | None = None,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    baseline: str | None = None,
    seeds: int = 8,
    tune_seeds: int = 2,
    epochs: int = 20,
    target: float | None = None,
    final: bool = True,
) -> Path:
    """Writes a study in which accuracy falls off around each variant's best rate.

    A variant's `skill` is the accuracy it reaches, `rate` its best learning rate, `limit` the rate
    above which it diverges, `diverges` the seeds of its final runs that diverge all the same. Each
    further level of a factor costs the variants a little, the later ones less, and each further
    task costs all the same.
    """
    store = Store(folder)
    config = {
        "study": study,
        "data": {"name": "digits", "batch_size": 64},
        "model": {"name": "mlp", "hidden": [128, 128], "activation": "relu"},
        "optimizer": {"name": optimizer, "momentum": 0.9, "schedule": "cosine"},
        "train": {"epochs": epochs},
        "variants": {
            name: {key: value for key, value in fields.items() if key not in DRAWN}
            for name, fields in variants.items()
        },
        "factors": dict(factors or {}),
        "tasks": {name: dict(changes) for name, changes in (tasks or {}).items()},
        "seeds": seeds,
        "baseline": baseline or next(iter(variants)),
        "target": target,
    }
    store.write_config(config | {"tune": {**tune, "seeds": tune_seeds}} if tune else config)
    environment = {
        "packages": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "numpy": "2.4.6"},
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "device": "cpu: 2 cores",
        "git_revision": "0123456789abcdef0123456789abcdef01234567",
        "command": f"normlab compare configs/{study}.yaml",
    }
    store.write_environment(environment)
    points = [dict(zip(tune, point, strict=True)) for point in itertools.product(*tune.values())]
    for place, arm in enumerate(arms(variants, factors or {}, tasks or {})):
        fields = dict(variants[arm.variant])
        index = list(variants).index(arm.variant)
        levels = [list(values).index(arm.levels[path]) for path, values in (factors or {}).items()]
        fields["skill"] -= 0.012 * sum(levels) * (1 - index / len(variants))
        fields["skill"] -= 0.08 * (list(tasks).index(arm.task) if tasks else 0)
        identity = {
            **{key: config[key] for key in ("data", "model", "optimizer", "train")},
            **{key: environment[key] for key in ("packages", "device")},
            "variant": config["variants"][arm.variant],
            "place": place,  # Arms may differ in their tasks alone.
        }
        draw = partial(_draw_run, store, arm, fields, place, epochs, identity)
        if tune:
            for values in points:
                for seed in range(tune_seeds):
                    draw("tune", values, 1_000_000 + seed)
        if final:
            values = min(points, key=lambda point: _distance(fields, point))
            for seed in range(seeds):
                draw("final", values, seed)
    return folder


def _distance(fields: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    rate = values.get("optimizer.learning_rate", fields["rate"])
    too_high = rate > fields.get("limit", math.inf)
    return math.inf if too_high else abs(math.log10(rate / fields["rate"]))


def _draw_run(
    store: Store,
    arm: Arm,
    fields: Mapping[str, Any],
    place: int,
    epochs: int,
    identity: Mapping[str, Any],
    phase: Literal["tune", "final"],
    values: Mapping[str, float],
    seed: int,
) -> None:
    of_seed = np.random.default_rng(seed)
    own = np.random.default_rng([seed, place, round(1e6 * sum(values.values()))])
    distance = _distance(fields, values)
    diverged = math.isinf(distance) or (phase == "final" and seed in fields.get("diverges", ()))
    distance = min(distance, 1.5)
    end = fields["skill"] - 0.06 * distance**2 + 0.004 * of_seed.normal() + 0.003 * own.normal()
    time = np.arange(1, 1 + epochs if not diverged else epochs // 4)
    speed = 0.55 * (1.3 - 0.4 * distance)
    accuracy = end - (end - 0.3) * np.exp(-speed * time) + 0.004 * own.normal(size=time.size)
    accuracy = np.clip(accuracy, 0, 1)
    fit = (1 - end) ** 0.5 + 0.02 * own.normal()
    loss = 2.2 * (1 + 6 * time) ** (-0.25 / max(fit, 0.12) * speed)
    losses = {"train": loss.tolist(), "validation": (loss + 0.3 * (1 - end)).tolist()}
    if diverged:
        losses["train"][-1:] = [None] * (len(time) > 0)
    result = Result(
        id="any",
        phase=phase,
        variant=arm.variant,
        arm=arm.name,
        levels=arm.levels,
        task=arm.task,
        seed=seed,
        values=dict(values),
        status="diverged" if diverged else "finished",
        steps_per_epoch=18,
        curve=Curve(
            step=[18 * int(it) for it in time],
            train={"loss": losses["train"], "accuracy": np.clip(accuracy + 0.01, 0, 1).tolist()},
            validation={
                "loss": losses["validation"],
                "accuracy": accuracy.tolist(),
            },
        ),
        test=None
        if diverged or phase == "tune"
        else {"loss": 2.5 * (1 - end), "accuracy": round(end * 360) / 360},
        seconds=0.4 + 0.05 * place,
        identity=with_values(identity, values) | {"phase": phase, "seed": seed},
    )
    store.write(named(result))
