"""Probes against closed forms in float64: on least squares, and of arrays that are drawn."""

import math
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

import normlab
from normlab.errors import UserError
from normlab.models import network_of
from normlab.models.as_functions import Functions
from normlab.objectives import Classification
from normlab.probes import (
    PROBES,
    Problem,
    Report,
    activations,
    along_gradient,
    correlation,
    effective_rank,
    gradients,
    interaction,
    internal_covariate_shift,
    layers_of,
    noise_scale,
    sharpness,
    undone,
    weights,
)

COUNT, WIDTHS, STEP = 24, (3, 2), 0.2


class Squares(normlab.Objective):
    targets = "values"

    def loss(self, output, target):
        return jnp.sum(jnp.square(output - target), -1)


@pytest.fixture(scope="module")
def squares():
    """Least squares as a network of two layers that add up: inputs, targets, weights, problem."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(COUNT, sum(WIDTHS))), generator.normal(size=(COUNT, 1))
    w = generator.normal(size=(sum(WIDTHS), 1))
    first = WIDTHS[0]

    def apply(params, state, inputs, *, train, key):
        # The layer whose name sorts last is called first.
        output = inputs[:, :first] @ params["z"]["kernel"]
        return output + inputs[:, first:] @ params["a"]["kernel"], state

    network = network_of(Functions(lambda key, inputs: None, apply))
    params = {"a": {"kernel": jnp.float32(w[first:])}, "z": {"kernel": jnp.float32(w[:first])}}
    key = jax.random.key(0)
    given = jnp.float32(x), jnp.float32(y)
    return x, y, w, Problem(network, Squares(), params, {}, *given, key)


def gradient_of(x, y, w):
    return 2 * x.T @ (x @ w - y) / len(x)


def loss_of(x, y, w):
    return ((x @ w - y) ** 2).sum(-1).mean()


def only(gradient, layer):
    kept = np.zeros_like(gradient)
    part = slice(None, WIDTHS[0]) if layer == "z" else slice(WIDTHS[0], None)
    kept[part] = gradient[part]
    return kept


def test_layers_stand_as_they_are_called(squares):
    *_, problem = squares
    layers = layers_of(problem)
    assert layers.names == ("z", "a")
    assert layers.place == {"a": {"kernel": 1}, "z": {"kernel": 0}}


def test_the_sharpest_direction_of_least_squares_is_that_of_the_inputs(squares):
    x, _, _, problem = squares
    largest = np.linalg.eigvalsh(2 * x.T @ x / COUNT)[-1]
    # More iterations than there are parameters change nothing.
    for iterations in (5, 12):
        found = sharpness(problem, jax.random.key(1), iterations)
        assert found == pytest.approx(largest, rel=1e-5)
    assert sharpness(problem, jax.random.key(1), 2) <= largest * (1 + 1e-5)


def test_along_the_gradient_least_squares_are_a_parabola(squares):
    x, y, w, problem = squares
    gradient = gradient_of(x, y, w)
    curved = 2 * x.T @ x @ gradient / COUNT
    told = along_gradient(problem, STEP)
    assert told["before"]["all"] == pytest.approx(loss_of(x, y, w), rel=1e-5)
    for share in (0.25, 0.5, 0.75, 1.0):
        name = f"{share:g}"
        after = loss_of(x, y, w - share * STEP * gradient)
        assert told["loss"][name] == pytest.approx(after, rel=1e-5)
        expected = share * STEP * np.linalg.norm(curved)
        assert told["predictiveness"][name] == pytest.approx(expected, rel=1e-4)
    expected = np.linalg.norm(curved) / np.linalg.norm(gradient)
    assert told["smoothness"]["all"] == pytest.approx(expected, rel=1e-4)


def test_layers_interact_by_what_is_beside_the_blocks_of_the_curvature(squares):
    x, y, w, problem = squares
    gradient = gradient_of(x, y, w)

    def change(gradient):
        return loss_of(x, y, w - STEP * gradient) - loss_of(x, y, w)

    single = [change(only(gradient, layer)) for layer in "za"]
    expected = abs(change(gradient) - sum(single)) / sum(map(abs, single))
    found = interaction(problem, layers_of(problem), STEP)
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_gradient_of_a_layer_shifts_by_the_steps_of_those_before(squares):
    x, y, w, problem = squares
    told = internal_covariate_shift(problem, layers_of(problem), STEP)
    gradient = gradient_of(x, y, w)
    moved = gradient_of(x, y, w - STEP * only(gradient, "z"))
    ours, theirs = (only(it, "a")[WIDTHS[0] :, 0] for it in (gradient, moved))
    assert told["distance"]["z"] == pytest.approx(0, abs=1e-5)
    assert told["cosine"]["z"] == pytest.approx(1, abs=1e-5)
    assert told["distance"]["a"] == pytest.approx(np.linalg.norm(ours - theirs), rel=1e-4)
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert told["cosine"]["a"] == pytest.approx(cosine, rel=1e-4)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_noise_scale_compares_a_batch_with_its_parts(squares, parts):
    x, y, w, problem = squares
    few = COUNT // parts
    of_parts = [gradient_of(x[at : at + few], y[at : at + few], w) for at in range(0, COUNT, few)]
    small = np.mean([np.sum(it**2) for it in of_parts])
    large = np.sum(gradient_of(x, y, w) ** 2)
    signal = (COUNT * large - few * small) / (COUNT - few)
    noise = (small - large) / (1 / few - 1 / COUNT)
    assert noise_scale(problem, parts) == pytest.approx(noise / signal, rel=1e-4)
    with pytest.raises(ValueError, match="a batch of 24 examples cannot be cut into 5"):
        noise_scale(problem, 5)
    assert gradients(problem, STEP)["noise_scale"]["all"] == noise_scale(problem, 4)
    of_five = replace(problem, inputs=problem.inputs[:5], targets=problem.targets[:5])
    assert "noise_scale" not in gradients(of_five, STEP)


def test_a_step_turns_the_gradient_of_least_squares_by_their_curvature(squares):
    x, y, w, problem = squares
    gradient = gradient_of(x, y, w)
    for step in (0.01, STEP):
        after = gradient - step * 2 * x.T @ x @ gradient / COUNT
        expected = (gradient * after).sum() / np.linalg.norm(gradient) / np.linalg.norm(after)
        found = gradients(problem, step)["cosine_of_steps"]["all"]
        assert found == pytest.approx(expected, rel=1e-4)


def test_weights_tell_their_norm_turn_and_rate(squares):
    x, y, w, problem = squares
    told = weights(problem, STEP)
    after = w - STEP * gradient_of(x, y, w)
    for layer, part in (("z", slice(None, 3)), ("a", slice(3, None))):
        one, other = w[part, 0], after[part, 0]
        name = f"{layer}/kernel"
        assert told["norm"][name] == pytest.approx(np.linalg.norm(one), rel=1e-5)
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert told["turned"][name] == pytest.approx(math.acos(cosine), rel=1e-4)
        assert told["effective_rate"][name] == pytest.approx(STEP / (one @ one), rel=1e-5)
    assert "undone" not in told


def test_ranks_and_correlations_are_those_of_singular_values_and_cosines():
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(16, 40)) + 0.5
    for examples in (drawn, drawn[:, :3] @ generator.normal(size=(3, 40)), 1e-20 * drawn):
        values = np.linalg.svd(examples, compute_uv=False)
        values = values[values > 1e-9 * values[0]]
        shares = values / values.sum()
        expected = np.exp(-(shares * np.log(shares)).sum())
        assert effective_rank(jnp.float32(examples)) == pytest.approx(expected, rel=2e-3)
    directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    cosines = (directions @ directions.T)[~np.eye(16, dtype=bool)]
    assert correlation(jnp.float32(drawn)) == pytest.approx(cosines.mean(), rel=1e-4)
    assert effective_rank(jnp.zeros((3, 2))) == correlation(jnp.zeros((1, 2))) == 0


def test_reports_tell_shares_and_gaps():
    generator = np.random.default_rng(0)
    x, y = generator.normal(2, 3, (9, 4, 5)), generator.normal(0, 4, (9, 4, 5))
    y[..., 0] = -np.abs(y[..., 0])
    mean, var = generator.normal(size=5), generator.uniform(1, 2, 5)
    running = {"mean": jnp.float32(mean), "var": jnp.float32(var)}
    told = activations.of_report(Report(jnp.float32(x), jnp.float32(y), {}, running))
    over = (0, 1)
    expected = {
        "mean": y.mean(),
        "deviation": y.std(),
        **{f"percentile_{it}": np.percentile(y, it) for it in (15, 50, 85)},
        "dead": 0.2,
        "saturated": (np.minimum(1 / (1 + np.exp(-y)), 1 / (1 + np.exp(y))) < 0.05).mean(),
        "gap_of_mean": (np.abs(x.mean(over) - mean) / np.sqrt(var)).mean(),
        "gap_of_deviation": np.abs(np.log(x.std(over) / np.sqrt(var))).mean(),
    }
    for name, value in expected.items():
        assert told[name] == pytest.approx(value, rel=1e-4), name
    assert told.keys() == {*expected, "effective_rank", "correlation"}


def test_a_batch_norm_that_gives_its_input_back_is_undone():
    x = jnp.float32(np.random.default_rng(0).normal(2, 3, (64, 5)))
    params = {"scale": jnp.std(x, 0), "bias": jnp.mean(x, 0)}
    model = normlab.BatchNorm(use_running_average=False, epsilon=0.0)
    y, _ = model.apply({"params": params}, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x, atol=1e-5)
    told = undone(Report(x, y, params, {}))
    assert told["undone"] == pytest.approx(0, abs=1e-6)
    assert told["undone_bias"] == pytest.approx(0, abs=1e-6)
    twice = undone(Report(x, y, {"scale": 3 * jnp.std(x, 0)}, {}))
    assert [*twice.items()] == [("undone", pytest.approx(2, rel=1e-5))]


class Small(nn.Module):
    """Two layers with names that do not sort in the order of their calls."""

    @nn.compact
    def __call__(self, x, train):
        x = normlab.BatchNorm(name="z")(nn.Dense(4, name="y")(x), use_running_average=not train)
        x = normlab.LayerNorm(name="b")(nn.Dense(3, name="c")(nn.relu(x)))
        return nn.Dense(3, name="a")(x)


class SmallNNX(nnx.Module):
    def __init__(self, rngs):
        self.y, self.c = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.z, self.b = normlab.nnx.BatchNorm(4, rngs=rngs), normlab.nnx.LayerNorm(3, rngs=rngs)
        self.a = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.a(self.b(self.c(nnx.relu(self.z(self.y(x))))))


@pytest.fixture(scope="module")
def small():
    generator = np.random.default_rng(0)
    x = jnp.float32(generator.normal(size=(16, 5)))
    labels = jnp.int32(generator.integers(3, size=16))
    variables = Small().init(jax.random.key(0), x, train=True)
    return variables, (x, labels), normlab.probe(Small(), variables, (x, labels))


def assert_same(ours, theirs):
    for probe, quantities in ours.values.items():
        assert quantities.keys() == theirs[probe].keys()
        for quantity, found in quantities.items():
            other = pytest.approx(theirs[probe][quantity], rel=2e-3, abs=1e-5)
            assert found == other, (probe, quantity)


def test_all_probes_of_a_linen_model_with_its_layers_as_they_are_called(small):
    _, _, told = small
    assert [*told.values] == [*PROBES]
    assert [*told["activations"]["mean"]] == [*told["gradients"]["to_input"]] == ["z", "b"]
    assert [*told["shift"]["distance"]] == ["y", "z", "c", "b", "a"]
    assert [*told["activations"]["gap_of_mean"]] == ["z"]
    assert {*told["weights"]["turned"]} == {"y/kernel", "c/kernel", "a/kernel"}
    frame = told.frame()
    assert frame.columns == ["probe", "quantity", "of", "value"]
    assert frame.height == sum(len(it) for each in told.values.values() for it in each.values())


def problem_of(small):
    variables, (x, labels), _ = small
    parts = variables["params"], variables["batch_stats"], x, labels, jax.random.key(0)
    return Problem(network_of(Small()), Classification(), *parts)


def test_the_sharpest_direction_is_that_of_the_whole_hessian(small):
    problem = problem_of(small)
    flat, unflat = ravel_pytree(problem.params)
    hessian = jax.hessian(lambda vector: problem.loss(unflat(vector)))(flat)
    largest = np.linalg.eigvalsh(np.float64(hessian))[-1]
    assert small[2]["landscape"]["sharpness"]["all"] == pytest.approx(largest, rel=1e-2)


def test_gradients_to_inputs_are_finite_differences(small):
    problem, told = problem_of(small), small[2]
    found = problem.gradients_of_inputs()
    direction = jnp.float32(np.random.default_rng(1).normal(size=found["z"].shape))

    def moved(size):
        with normlab.probes.reporting({"z": size * direction}):
            return float(problem.loss(problem.params))

    size = 1e-2
    slope = (moved(size) - moved(-size)) / (2 * size)
    assert jnp.vdot(found["z"], direction) == pytest.approx(slope, rel=1e-2)
    norms = {name: float(jnp.linalg.norm(it)) for name, it in found.items()}
    assert gradients(problem, STEP)["to_input"] == pytest.approx(norms, rel=1e-4)
    assert told["gradients"]["to_input"] == pytest.approx(norms, rel=1e-4)


def test_nnx_and_pairs_tell_the_same_as_linen(small):
    variables, batch, told = small
    module = SmallNNX(nnx.Rngs(0))
    for name in "ycazb":
        for leaf, value in variables["params"][name].items():
            getattr(getattr(module, name), leaf)[...] = value
    probes = ("activations", "shift", "landscape")
    by_nnx = normlab.probe(module, None, batch, probes=probes)
    layers = {"z": "norm_0", "b": "norm_1"}
    for probe in probes:
        for quantity, found in told[probe].items():
            names = layers if probe == "activations" else {}
            named = {names.get(name, name): value for name, value in found.items()}
            assert named == pytest.approx(by_nnx[probe][quantity], rel=2e-3, abs=1e-5)

    def apply(params, state, inputs, *, train, key):
        y, updated = Small().apply(
            {"params": params, "batch_stats": state}, inputs, train=train, mutable=["batch_stats"]
        )
        return y, updated["batch_stats"]

    pair = (lambda key, inputs: None, apply)
    by_pair = normlab.probe(pair, variables, batch, probes=["activations"])
    assert_same(by_pair, told)


def test_under_a_mesh_the_numbers_are_those_of_one_device(small):
    variables, batch, told = small
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    assert_same(told, normlab.probe(Small(), whole, spread))


def test_layers_within_a_transformation_of_the_model_report_nothing():
    class Remat(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.remat(normlab.LayerNorm)(name="hidden")(x)
            return nn.Dense(3)(normlab.LayerNorm(name="seen")(x))

    x = jnp.float32(np.random.default_rng(0).normal(size=(4, 3)))
    variables = Remat().init(jax.random.key(0), x, train=True)
    told = normlab.probe(
        Remat(), variables, (x, jnp.arange(4) % 3), probes=["activations", "shift"]
    )
    assert [*told["activations"]["mean"]] == ["seen"]
    assert [*told["shift"]["distance"]] == ["hidden", "seen", "Dense_0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"probes": ["activation"]}, "did you mean 'activations'"),
        ({"objective": "clasification"}, "did you mean 'classification'"),
        ({"variables": None}, "variables: expected {'params'"),
    ],
)
def test_what_is_wrong_is_told(small, given, message):
    variables, batch, _ = small
    given = {"variables": variables, **given}
    with pytest.raises(UserError, match=message):
        normlab.probe(Small(), given.pop("variables"), batch, **given)
    with pytest.raises(UserError, match="holds its variables itself; give None"):
        normlab.probe(SmallNNX(nnx.Rngs(0)), variables, batch)
