"""Optimizers against NumPy replays of their update rules, and schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter

from normlab.models import Roles
from normlab.train import AdamSpec, OptimizerSpec, SGDSpec
from normlab.train.optim import learning_rates, optimizer

PARAMS = {
    "dense_0": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "bias": np.array([0.3, -0.1])},
    "norm_0": {"scale": np.array([1.0, 1.2])},
}
DECAYED = {"dense_0": {"kernel": 1, "bias": 0}, "norm_0": {"scale": 0}}


def roles(params):
    """As a model tells them that has its norms and its head by these names."""

    def marked(holds):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: holds([entry.key for entry in path]), params
        )

    return Roles(
        weights=marked(lambda path: path[-1] == "kernel"),
        norms=marked(lambda path: path[0].startswith("norm")),
        head=marked(lambda path: path[0] == "head"),
    )


def gradients(step):
    generator = np.random.default_rng(step)
    return jax.tree.map(lambda p: generator.normal(size=p.shape), PARAMS)


def steps_of(spec, traced=None, count=5, steps_per_epoch=2):
    """Parameters after each step with Optax."""
    transformation = optimizer(spec, traced or spec.traced(), 10, steps_per_epoch, roles)
    params = jax.tree.map(jnp.float32, PARAMS)
    state = transformation.init(params)
    for step in range(count):
        updates, state = transformation.update(
            jax.tree.map(jnp.float32, gradients(step)), state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
    return params


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-6), actual, expected
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decayed", ["weights", "all"])
def test_sgd_adds_decay_to_the_gradient_and_keeps_a_velocity(nesterov, decayed):
    spec = SGDSpec(
        learning_rate=0.1, momentum=0.8, weight_decay=0.01, nesterov=nesterov, decayed=decayed
    )
    params, velocity = PARAMS, jax.tree.map(np.zeros_like, PARAMS)
    share = DECAYED if decayed == "weights" else jax.tree.map(lambda _: 1, DECAYED)
    for step in range(5):
        gradient = jax.tree.map(lambda g, p, d: g + 0.01 * d * p, gradients(step), params, share)
        velocity = jax.tree.map(lambda v, g: 0.8 * v + g, velocity, gradient)
        direction = (
            jax.tree.map(lambda v, g: 0.8 * v + g, velocity, gradient) if nesterov else velocity
        )
        params = jax.tree.map(lambda p, d: p - 0.1 * d, params, direction)
    assert_close(steps_of(spec), params)


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_adam_and_its_kin_follow_their_papers(name):
    spec = AdamSpec(name=name, learning_rate=0.01, weight_decay=0.1)
    params = PARAMS
    first = second = jax.tree.map(np.zeros_like, PARAMS)
    for step in range(5):
        gradient = gradients(step)
        if name == "adam":
            gradient = jax.tree.map(lambda g, p, d: g + 0.1 * d * p, gradient, params, DECAYED)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
        bias1, bias2 = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        mean = jax.tree.map(lambda m, b=bias1: m / b, first)
        root = jax.tree.map(lambda v, b=bias2: np.sqrt(v / b), second)
        update = jax.tree.map(lambda m, r: m / (r + 1e-8), mean, root)
        if name != "adam":
            update = jax.tree.map(lambda u, p, d: u + 0.1 * d * p, update, params, DECAYED)
        if name == "lamb":
            update = jax.tree.map(
                lambda u, p: u * np.linalg.norm(p) / np.linalg.norm(u), update, params
            )
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, update)
    assert_close(steps_of(spec), params)


def test_traced_numbers_take_the_place_of_the_specs_own():
    wanted = SGDSpec(learning_rate=0.03, momentum=0.5, weight_decay=0.2)
    other = SGDSpec(learning_rate=9.0, momentum=0.1)
    assert wanted.untraced() == other.untraced()
    run = jax.jit(lambda traced: steps_of(other, traced))
    assert_close(run(wanted.traced()), steps_of(wanted))


def test_gradient_clip_limits_the_norm_of_the_whole_gradient():
    spec = SGDSpec(learning_rate=1.0, momentum=0.0, gradient_clip=0.5)
    moved = jax.tree.map(np.subtract, PARAMS, steps_of(spec, count=1))
    norm = np.sqrt(sum(np.sum(m**2) for m in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


# A convolution, its bias, the scalar of a branch, and the head.
UNITS = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "multiplier": (),
    "norm": {"scale": (4,)},
    "dense": {"kernel": (6, 5)},
    "head": {"kernel": (5, 3), "bias": (3,)},
}


def clipped(gradient, weight, clip, path):
    """Brock et al., 2021, equation 3, one unit after the other."""
    if path[0].key == "head" or weight.ndim == 0:
        return gradient
    found = np.array(gradient)
    units = [...] if weight.ndim == 1 else [(..., unit) for unit in range(weight.shape[-1])]
    for unit in units:
        largest = clip * max(np.linalg.norm(weight[unit]), 1e-3)
        length = np.linalg.norm(gradient[unit])
        found[unit] *= min(1, largest / length)
    return found


# Adam's first step depends on the size of the gradient only through the epsilon.
@pytest.mark.parametrize("spec", [SGDSpec(momentum=0.0), AdamSpec(name="adam", epsilon=1.0)])
def test_adaptive_clip_limits_each_unit_but_in_the_head_and_scalars(spec):
    generator = np.random.default_rng(5)

    def drawn(spread):
        """Units of sizes that differ by that many powers of ten."""
        return jax.tree.map(
            lambda shape: np.float32(
                generator.normal(size=shape) * 10.0 ** generator.uniform(-spread, 0, shape[-1:])
            ),
            UNITS,
            is_leaf=lambda it: isinstance(it, tuple),
        )

    params, gradient = drawn(0), drawn(4)
    params["conv"]["bias"] *= 0  # As it starts; only the least length lets it move.
    wanted = jax.tree_util.tree_map_with_path(
        lambda path, g, w: clipped(g, w, 0.05, path), gradient, params
    )
    same = np.all(wanted["dense"]["kernel"] == gradient["dense"]["kernel"], axis=0)
    assert set(same) == {True, False}

    def update(spec, gradient):
        transformation = optimizer(spec, spec.traced(), 10, 2, roles)
        given, held = jax.tree.map(jnp.float32, (gradient, params))
        return transformation.update(given, transformation.init(held), held)[0]

    limited = spec.model_copy(update={"adaptive_gradient_clip": 0.05})
    assert_close(update(limited, gradient), update(spec, wanted))


def rates(steps=10, steps_per_epoch=2, **fields):
    schedule = learning_rates(SGDSpec(**fields), 0.5, steps, steps_per_epoch)
    return [float(schedule(step)) for step in range(steps)]


def test_constant_schedule():
    assert rates() == [0.5] * 10


def test_cosine_schedule_falls_to_zero_at_the_end():
    expected = [0.5 * 0.5 * (1 + np.cos(np.pi * step / 10)) for step in range(10)]
    np.testing.assert_allclose(rates(schedule="cosine"), expected, atol=1e-7)


def test_step_schedule_multiplies_at_the_milestones():
    expected = [0.5] * 5 + [0.1] * 3 + [0.02] * 2
    given = rates(schedule="step", milestones=(0.5, 0.8), step_factor=0.2)
    np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_milestones_that_fall_on_one_step_both_count():
    given = rates(steps=4, schedule="step", milestones=(0.5, 0.55), step_factor=0.1)
    np.testing.assert_allclose(given, [0.5, 0.5, 0.005, 0.005], rtol=1e-6)


def test_warmup_rises_in_equal_steps_and_is_part_of_the_run():
    expected = [0.125, 0.25, 0.375, 0.5] + [0.25 * (1 + np.cos(np.pi * s / 6)) for s in range(6)]
    np.testing.assert_allclose(rates(schedule="cosine", warmup_epochs=2), expected, atol=1e-7)
    stepped = rates(schedule="step", warmup_epochs=2, milestones=(0.5,), step_factor=0.1)
    np.testing.assert_allclose(stepped, [0.125, 0.25, 0.375, 0.5, 0.5] + [0.05] * 5, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "sgd", "beta1": 0.9},
        {"name": "adam", "momentum": 0.9},
        {"name": "sgd", "learning_rate": 0},
        {"name": "sgd", "momentum": 1.0},
        {"name": "sgd", "milestones": [0.8, 0.5]},
        {"name": "adagrad"},
    ],
)
def test_what_no_optimizer_has_is_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        TypeAdapter(OptimizerSpec).validate_python(wrong)
