"""Folders of studies that never ran: curves drawn from formulas, for the tests of the report."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normlab.compare.paths import with_values
from normlab.compare.store import Curve, Evaluation, Result, Store

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
HURTFUL = {
    "study": "<script>alert(1)</script>",
    "variants": {
        "<script>alert(2)</script>": QUICKSTART["none"],
        "</script><img src=x onerror=alert(3)>": QUICKSTART["batch"],
        "a'\"&{{ 7 * 7 }}${b}": QUICKSTART["batch"],
    },
}
DRAWN = {"skill", "rate", "limit", "diverges"}


def draw_study(
    folder: Path,
    variants: Mapping[str, Mapping[str, Any]] = QUICKSTART,
    tune: Mapping[str, Sequence[float]] = RATES,
    *,
    study: str = "quickstart",
    optimizer: str = "sgd",
    baseline: str | None = None,
    seeds: int = 8,
    tune_seeds: int = 2,
    epochs: int = 20,
    target: float | None = None,
    final: bool = True,
) -> Path:
    """Writes a study in which accuracy falls off around each variant's best rate.

    A variant's `skill` is the accuracy it reaches, `rate` its best learning rate, `limit` the rate
    above which it diverges, `diverges` the seeds of its final runs that diverge all the same.
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
        "seeds": seeds,
        "baseline": baseline or next(iter(variants)),
        "target_accuracy": target,
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
    for place, (name, fields) in enumerate(variants.items()):
        identity = {
            **{key: config[key] for key in ("data", "model", "optimizer", "train")},
            **{key: environment[key] for key in ("packages", "device")},
            "variant": config["variants"][name],
        }
        draw = partial(_draw_run, store, name, fields, place, epochs, identity)
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
    name: str,
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
    point = "-".join(f"{value:g}" for value in values.values())
    result = Result(
        id=f"{phase}-{place}-{seed}-{point}",
        phase=phase,
        variant=name,
        arm=name,
        seed=seed,
        values=dict(values),
        status="diverged" if diverged else "finished",
        steps_per_epoch=18,
        curve=Curve(
            train_loss=loss.tolist(),
            train_accuracy=np.clip(accuracy + 0.01, 0, 1).tolist(),
            validation_loss=(loss + 0.3 * (1 - end)).tolist(),
            validation_accuracy=accuracy.tolist(),
        ),
        test=None
        if diverged or phase == "tune"
        else Evaluation(loss=2.5 * (1 - end), accuracy=round(end * 360) / 360),
        seconds=0.4 + 0.05 * place,
        identity=with_values(identity, values) | {"phase": phase, "seed": seed},
    )
    store.write(result)
