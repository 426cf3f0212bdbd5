"""Training two convolutional networks: images a second, here and elsewhere.

    python experiments/benchmarks/training.py

The networks and optimizers of configs/keras_cnn.yaml and configs/cifar10_resnet8.yaml, at a
constant rate, on random images of 32x32x3. One call is an epoch: a fresh order of the images, cut
into batches, each a step that also returns loss and accuracy. normlab runs it as one compiled
program, as `normlab compare` does; plain Flax, Keras 3 on JAX and PyTorch step through it.

In bfloat16, parameters, statistics and loss are float32; PyTorch has autocast, Keras its policy.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from interleaved import (
    DEVICES,
    command_line,
    console,
    gpu_name,
    measure,
    name_of_results,
    save,
    spread,
)
from rich.table import Table

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = ("keras_cnn", "cifar10_resnet8")
GHOST = "{layer: ghost_batch_norm, ghost_batch_size: %d, remainder: %s}"
# The arm of the configuration, and what else a batch of 128 can be cut into.
ARMS = {
    "batch": "",
    "ghost_32": GHOST % (32, "error"),
    "ghost_48_smaller_group": GHOST % (48, "smaller_group"),
    "ghost_48_merge_last": GHOST % (48, "merge_last"),
}
PRECISIONS = ("float32", "bfloat16")
SEEDS = 4


class Case(NamedTuple):
    model: str
    arm: str
    images: int
    batch_size: int
    precision: str = "float32"


def random_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((count, 32, 32, 3), np.float32)
    return images, generator.integers(10, size=count, dtype=np.int32)


def random_dataset(count: int) -> Any:
    """Images to train on, and one more each to validate and to test on."""
    from normlab.data import Dataset

    images, labels = random_images(count + 2)
    splits = np.split(np.arange(count + 2, dtype=np.int32), [count, count + 1])
    mean, deviation = np.zeros(3, np.float32), np.ones(3, np.float32)
    return Dataset("random", images, labels, *splits, mean, deviation, 10)


def study_of(case: Case) -> Any:
    from normlab.config import load_study

    arms = [f"variants.{name}={fields}" for name, fields in ARMS.items() if fields]
    fixed = ["optimizer.schedule=constant", f"train.precision={case.precision}"]
    return load_study(CONFIGS / f"{case.model}.yaml", [*fixed, *arms])


def programs_of(case: Case) -> Any:
    """The programs of a case."""
    from normlab.models import network_of
    from normlab.train import Programs, Resident, place

    study = study_of(case)
    placed = place(random_dataset(case.images), case.batch_size)
    model = study.model.build(study.variants[case.arm].constructor(), 10, study.train.precision)
    feed = Resident(placed, case.batch_size, study.train.augmentation, study.train.precision)
    return Programs(network_of(model), study.objective, feed, study.optimizer, study.train)


def normlab(case: Case) -> Callable[[], None]:
    import jax

    programs = programs_of(case)
    seed, traced = programs.inputs([0], [{}])
    state, sums = programs.initialize(seed, traced)
    coming = programs.coming(state)

    def work():
        nonlocal state, sums
        parts = coming(programs.feed.steps_per_epoch)
        state, sums = programs.advance(state, sums, traced, parts)
        jax.block_until_ready((state, sums))

    return work


def _many(case: Case, mapped: Callable[..., Any]) -> Callable[[], None] | None:
    """An epoch of several seeds in one program."""
    import jax
    import jax.numpy as jnp

    if case.arm != "batch":
        return None
    programs = programs_of(case)
    _, traced = programs.inputs([0], [{}])
    one_initialization, advance, _ = programs.functions

    def some_steps(carry, *rest):
        state, sums, _ = advance(carry, *rest)
        return state, sums

    initialize = jax.jit(jax.vmap(one_initialization, in_axes=(0, None)))
    carries = initialize(jnp.arange(SEEDS, dtype=jnp.uint32), traced)
    epochs = jax.jit(mapped(some_steps), donate_argnums=0)
    given = traced, None, programs.feed.shared, jnp.int32(programs.feed.steps_per_epoch)

    def work():
        nonlocal carries
        carries = jax.block_until_ready(epochs(carries, *given))

    return work


def normlab_vmap(case: Case) -> Callable[[], None] | None:
    import jax

    return _many(case, lambda epoch: jax.vmap(epoch, in_axes=(0, None, None, None, None)))


def normlab_map(case: Case) -> Callable[[], None] | None:
    from jax import lax

    def mapped(epoch):
        return lambda states, *rest: lax.map(lambda state: epoch(state, *rest), states)

    return _many(case, mapped)


def flax_state(case: Case) -> tuple[Any, Any, Any]:
    """The state of plain Flax, and images and labels on the device."""
    import jax
    import optax
    import plain_flax

    images, labels = map(jax.device_put, random_images(case.images))
    optimizer = study_of(case).optimizer
    if case.model == "keras_cnn":
        model: Any = plain_flax.CNN(dtype=case.precision)
        transformation = optax.adam(optimizer.learning_rate, eps=optimizer.epsilon)
    else:
        model = plain_flax.ResNet8(dtype=case.precision)
        decay = optax.add_decayed_weights(
            optimizer.weight_decay, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        )
        sgd = optax.sgd(optimizer.learning_rate, optimizer.momentum)
        transformation = optax.chain(decay, sgd)
    # In one program: a GPU takes long to compile operation by operation, which nobody counts here.
    initialize = jax.jit(plain_flax.initialize, static_argnums=(0, 1))
    state = initialize(model, transformation, jax.random.key(0), images)
    return state, images, labels


def flax(case: Case) -> Callable[[], None] | None:
    import jax
    import plain_flax

    if case.arm != "batch":
        return None
    state, images, labels = flax_state(case)
    step = jax.jit(plain_flax.step, donate_argnums=0)
    order = np.random.default_rng(0)

    def work():
        nonlocal state
        metrics = []
        for batch in _batches(order, case):
            state, of_step = step(state, images, labels, batch)
            metrics.append(of_step)
        np.mean(jax.device_get(metrics), axis=0)

    return work


def _batches(order: np.random.Generator, case: Case) -> np.ndarray:
    return order.permutation(case.images).reshape(-1, case.batch_size)


def keras(case: Case) -> Callable[[], None] | None:
    import keras as kr

    if case.arm != "batch":
        return None
    optimizer = study_of(case).optimizer
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[case.precision]
    kr.config.set_dtype_policy(policy)
    if case.model == "keras_cnn":
        model = kr.Sequential(
            [
                kr.Input((32, 32, 3)),
                kr.layers.Conv2D(32, 3, activation="relu"),
                kr.layers.BatchNormalization(),
                kr.layers.Conv2D(64, 3, activation="relu"),
                kr.layers.BatchNormalization(),
                kr.layers.Flatten(),
                kr.layers.Dense(10),
            ]
        )
        rule = kr.optimizers.Adam(optimizer.learning_rate)
    else:
        model = _keras_resnet(kr.regularizers.L2(optimizer.weight_decay / 2))
        rule = kr.optimizers.SGD(optimizer.learning_rate, optimizer.momentum)
    loss = kr.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(rule, loss, metrics=["accuracy"], jit_compile=True)
    images, labels = random_images(case.images)
    return lambda: model.fit(images, labels, batch_size=case.batch_size, verbose=0) and None


def _keras_resnet(decay: Any) -> Any:
    from keras import Input, Model, layers, ops

    def conv(x, width, stride=1):
        x = layers.Conv2D(
            width,
            3,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=decay,
        )(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    images = Input((32, 32, 3))
    x = layers.ReLU()(conv(images, 16))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        y = conv(layers.ReLU()(conv(x, width, stride)), width)
        added = ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1]))
        x = layers.ReLU()(y + ops.pad(x[:, ::stride, ::stride], added))
    logits = layers.Dense(10, kernel_regularizer=decay)(layers.GlobalAveragePooling2D()(x))
    return Model(images, logits)


def torch(case: Case, compiled: bool = False) -> Callable[[], None] | None:
    import torch as pt

    if case.arm != "batch":
        return None
    optimizer = study_of(case).optimizer
    device = os.environ["JAX_PLATFORMS"]
    cnn = case.model == "keras_cnn"
    model = (_torch_cnn() if cnn else _torch_resnet()).to(device, memory_format=pt.channels_last)
    if cnn:
        rule: Any = pt.optim.Adam(model.parameters(), optimizer.learning_rate, eps=1e-7)
    else:
        kernels = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": kernels, "weight_decay": optimizer.weight_decay}, {"params": others}]
        rule = pt.optim.SGD(groups, optimizer.learning_rate, optimizer.momentum)
    function = pt.compile(model) if compiled else model
    images, labels = (pt.as_tensor(array, device=device) for array in random_images(case.images))
    labels, order = labels.long(), np.random.default_rng(0)

    def work():
        losses, correct = pt.zeros((), device=device), pt.zeros((), device=device)
        for batch in pt.as_tensor(_batches(order, case), device=device):
            with pt.autocast(device, pt.bfloat16, enabled=case.precision == "bfloat16"):
                logits = function(images[batch].permute(0, 3, 1, 2))  # channels last in memory
                loss = pt.nn.functional.cross_entropy(logits, labels[batch])
            rule.zero_grad()
            loss.backward()
            rule.step()
            losses += loss.detach()
            correct += (logits.argmax(-1) == labels[batch]).sum()
        losses.item(), correct.item()

    return work


def torch_compiled(case: Case) -> Callable[[], None] | None:
    return torch(case, compiled=True)


def _torch_cnn() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.BatchNorm2d(32, eps=1e-3, momentum=0.01),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.BatchNorm2d(64, eps=1e-3, momentum=0.01),
        nn.Flatten(),
        nn.Linear(28 * 28 * 64, 10),
    )


def _torch_resnet() -> Any:
    from torch import nn
    from torch.nn import functional

    def conv(channels, width, stride=1):
        layer = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(width))

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.stride, self.added = stride, width - channels
            first, second = conv(channels, width, stride), conv(width, width)
            self.branch = nn.Sequential(first, nn.ReLU(), second)

        def forward(self, x):
            shortcut = x[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.added))
            return functional.relu(self.branch(x) + shortcut)

    blocks = (Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(conv(3, 16), nn.ReLU(), *blocks, *end)


PEERS = {
    "normlab": normlab,
    "normlab_vmap": normlab_vmap,
    "normlab_map": normlab_map,
    "flax": flax,
    "keras": keras,
    "torch": torch,
    "torch_compiled": torch_compiled,
}


def step_memory(case: Case) -> dict[str, int]:
    """The bytes held at the peak of one compiled step, its arguments included."""
    import jax
    import jax.numpy as jnp
    import plain_flax

    from normlab.train.programs import abstract_state, lower_step

    programs = programs_of(case)

    def flax_step(state, images, labels):
        return plain_flax.step(state, images, labels, slice(None))

    images = jax.ShapeDtypeStruct((case.batch_size, 32, 32, 3), jnp.float32)
    own_images = jax.ShapeDtypeStruct(images.shape, case.precision)  # standardized before the step
    labels = jax.ShapeDtypeStruct((case.batch_size,), jnp.int32)
    of_flax = jax.eval_shape(lambda: flax_state(case)[0])
    example = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1, jnp.int32)
    state = abstract_state(programs.steps, example)
    lowered = {
        "normlab": lower_step(programs.steps, state, (own_images, labels)),
        "flax": jax.jit(flax_step, donate_argnums=0).lower(of_flax, images, labels),
    }
    found = {}
    for name, program in lowered.items():
        memory: Any = program.compile().memory_analysis()
        found[name] = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2, help="in each peer's turn")
    parser.add_argument("--images", type=int, default=1280, help="in an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precisions", nargs="*", default=["float32"], choices=PRECISIONS)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--untuned", action="store_true", help="without normlab's settings")
    parser.add_argument("--name", help="of the file of results, if not that of script and GPU")
    given = parser.parse_args()
    if given.images % given.batch_size:
        parser.error("--images must be a multiple of --batch-size")

    cases = [
        Case(model, arm, given.images, given.batch_size, precision)
        for precision in given.precisions
        for model in given.models
        for arm in given.arms
        # The CNN's norms stand on the largest arrays; what holds there holds for the other.
        if arm == "batch" or model == "keras_cnn"
    ]
    peers = {name: PEERS[name] for name in given.peers}
    name = given.name or name_of_results("training", given.device)
    measured = measure(
        peers, cases, given.rounds, given.calls, device=given.device, tuned=not given.untuned
    )
    results: dict[str, Any] = {"rows": [], "ratios": {}, "bytes_of_step": {}}
    if given.device == "cuda":
        results = {"device": gpu_name(), **results}
    # Written after every case, so that what was measured is kept if the rest is cut off.
    for case, seconds in zip(cases, measured, strict=True):
        results["rows"].append(_row(case, seconds))
        results["ratios"] = ratios(results["rows"])
        save(name, command_line(), results, complete=False)
    # On a GPU every program would be compiled once more for it, which takes long.
    if given.device == "cpu" and {"normlab", "flax"} <= set(peers):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        of_batch = [case for case in cases if case.arm == "batch"]
        results["bytes_of_step"] = {network(it._asdict()): step_memory(it) for it in of_batch}
    show(results)
    path = save(name, command_line(), results)
    console.print(f"\n{path}")


def network(row: dict[str, Any]) -> str:
    """The model, with its precision where that is not float32."""
    return row["model"] if row["precision"] == "float32" else f"{row['model']} {row['precision']}"


def _row(case: Case, seconds: dict[str, list[float]]) -> dict[str, Any]:
    spreads = {peer: spread(times) for peer, times in seconds.items()}
    runs = {"normlab_vmap": SEEDS, "normlab_map": SEEDS}
    rates = {p: runs.get(p, 1) * case.images / it["median"] for p, it in spreads.items()}
    return {**case._asdict(), "seconds": spreads, "images_per_second": rates}


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times as fast as each peer normlab is, by network; the other arms as batch norm.

    Of `normlab_vmap` and `normlab_map` it is the time of a run among several over that of a run
    alone.
    """
    found: dict[str, Any] = {}
    of_batch = {network(row): row["images_per_second"] for row in rows if row["arm"] == "batch"}
    for name, rates in of_batch.items():
        if "normlab" in rates:
            others = {p: rates["normlab"] / rate for p, rate in rates.items() if p != "normlab"}
            found[name] = {"times_as_fast_as": others} if others else {}
    for row in rows:
        rates, batch = row["images_per_second"], of_batch.get(network(row), {})
        if row["arm"] != "batch" and "normlab" in rates and "normlab" in batch:
            times = found[network(row)].setdefault("time_over_batch_norm", {})
            times[row["arm"]] = batch["normlab"] / rates["normlab"]
    return found


def show(results: dict[str, Any]) -> None:
    title = f"images a second (vmap and map: of {SEEDS} seeds)"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("model", "norm", "peer", "median", "quartiles"):
        left = column in ("model", "norm", "peer")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in results["rows"]:
        for peer, rate in row["images_per_second"].items():
            times = row["seconds"][peer]
            low, high = (rate * times["median"] / times[end] for end in ("high", "low"))
            quartiles = f"{low:.0f}-{high:.0f}"
            table.add_row(network(row), row["arm"], peer, f"{rate:.0f}", quartiles)
    console.print(table)
    for model, of_model in results["ratios"].items():
        for what, numbers in of_model.items():
            said = ", ".join(f"{name} {number:.2f}" for name, number in numbers.items())
            console.print(f"{model}, {what.replace('_', ' ')}: {said}")
    for model, sizes in results["bytes_of_step"].items():
        said = ", ".join(f"{peer} {size / 1e6:.1f} MB" for peer, size in sizes.items())
        console.print(f"{model}, memory of a step at its peak: {said}")


if __name__ == "__main__":
    main()
