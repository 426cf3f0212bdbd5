"""The cases of the contract: every registered variant, with fields that suit a small input.

A new variant is tested by being registered. A line in `CASES` gives it an oracle, and fields where
its defaults do not suit `SHAPE`.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiled import AS_USERS

from normlab.variants import VARIANTS

SHAPE = (8, 3, 4)


class Stateless:
    """An oracle without state, to be used as a replay is."""

    def __init__(self, function: Callable, fields: dict[str, Any]):
        self.function, self.fields = function, fields
        self.state: dict[str, np.ndarray] = {}

    def normalize(self, x, mask=None, *, constant_of=None, **parameters) -> np.ndarray:
        del constant_of
        return self.function(x, mask=mask, **self.fields, **parameters)

    evaluate = normalize

    def update(self, x, mask=None) -> None: ...


@dataclass(frozen=True, eq=False)
class Case:
    """A variant with some of its fields.

    Attributes:
        variant: Its registered name.
        oracle: A function, or for a layer with running statistics a replay; None for a layer of
            which only what holds for all is known.
        fields: Of the layer.
        oracle_fields: Of the oracle; those of the layer if not given.
        title: What sets it apart from the variant's first case, which stands for the variant.
    """

    variant: str
    oracle: Callable[..., Any] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    oracle_fields: dict[str, Any] | None = None
    title: str = ""

    def __str__(self) -> str:
        return f"{self.variant}, {self.title}" if self.title else self.variant

    def layer(self, **fields) -> Any:
        return VARIANTS[self.variant].layer(**{**self.fields, **fields})

    def replay(self, channels: int = SHAPE[-1]) -> Any:
        """The oracle as it is before the first step."""
        if self.oracle is None:
            pytest.skip("a layer of the user's own, without an oracle")
        fields = self.fields if self.oracle_fields is None else self.oracle_fields
        if inspect.isclass(self.oracle):
            return self.oracle(channels, **fields)
        return Stateless(self.oracle, fields)

    def has_field(self, name: str) -> bool:
        return name in VARIANTS[self.variant].layer.__dataclass_fields__

    @property
    def features(self) -> int:
        """How many features the input has."""
        return SHAPE[self.fields.get("feature_axes", -1)]

    @property
    def keeps_state(self) -> bool:
        return "batch_stats" in shapes(self)


EXPONENTIAL = {"momentum": 0.9}
RENORM = {"r_max": 1.5, "d_max": 0.5, "start_steps": 1, "r_steps": 5, "d_steps": 4} | EXPONENTIAL
WEIGHING = EXPONENTIAL | {"example_weight": 0.3}
GROUPED = EXPONENTIAL | {"num_groups": 2}
GHOSTS = EXPONENTIAL | {"ghost_batch_size": 4, "remainder": "smaller_group"}
STRIDED = EXPONENTIAL | {
    "ghost_batch_size": 3,
    "grouping": "strided",
    "remainder": "merge_last",
    "running": "sequential",
}
WINDOW = {"size": 3, "alpha": 0.5}
PROXIES = {"activation": "gelu", "num_groups": 2, "samples": 16, "proxy_epsilon": 0.1}

CASES = [
    Case("identity", oracles.identity),
    Case("batch_norm", oracles.BatchNormReplay, EXPONENTIAL),
    Case("batch_norm", oracles.BatchNormReplay, {"momentum": None}, title="cumulative"),
    Case("batch_norm", oracles.BatchNormReplay, WEIGHING, title="weighing examples"),
    Case(
        "batch_norm",
        oracles.BatchNormReplay,
        EXPONENTIAL | {"running_variance": "unbiased", "debias": True},
        EXPONENTIAL | {"unbiased": True, "debias": True},
        title="debiased and unbiased",
    ),
    Case("ghost_batch_norm", oracles.GhostBatchNormReplay, GHOSTS),
    Case("ghost_batch_norm", oracles.GhostBatchNormReplay, STRIDED, title="strided"),
    Case("batch_renorm", oracles.BatchRenormReplay, RENORM),
    Case("batch_renorm", oracles.BatchRenormReplay, RENORM | WEIGHING, title="weighing examples"),
    Case("batch_group_norm", oracles.BatchGroupNormReplay, GROUPED),
    Case(
        "batch_group_norm",
        oracles.BatchGroupNormReplay,
        GROUPED | WEIGHING,
        title="weighing examples",
    ),
    Case("switchable_norm", oracles.SwitchableNormReplay, EXPONENTIAL),
    Case("switchable_norm", oracles.SwitchableNormReplay, WEIGHING, title="weighing examples"),
    Case("evonorm_b0", oracles.EvoNormB0Replay, EXPONENTIAL),
    Case("evonorm_b0", oracles.EvoNormB0Replay, WEIGHING, title="weighing examples"),
    Case("layer_norm", oracles.layer_norm),
    Case("layer_norm", oracles.layer_norm, {"reduction_axes": (1, 2)}, title="over examples"),
    Case("rms_norm", oracles.rms_norm),
    Case("rms_norm", oracles.rms_norm, {"zero_centred": True}, title="zero-centred"),
    Case("rms_norm", oracles.rms_norm, {"fraction": 0.6}, title="partial"),
    Case("group_norm", oracles.group_norm, {"num_groups": 2}),
    Case(
        "group_norm",
        oracles.group_norm,
        {"num_groups": 3, "feature_axes": 1},
        title="channels first",
    ),
    Case("instance_norm", oracles.instance_norm),
    Case("instance_norm", oracles.instance_norm, {"feature_axes": 1}, title="channels first"),
    Case("position_norm", oracles.position_norm),
    Case("filter_response_norm", oracles.filter_response_norm),
    Case(
        "filter_response_norm",
        oracles.filter_response_norm,
        {"epsilon": 0.1, "learn_epsilon": True, "use_threshold": False},
        {"base_epsilon": 0.1},
        title="learned epsilon",
    ),
    Case("evonorm_s0", oracles.evonorm_s0, {"num_groups": 2}),
    Case("proxy_norm", oracles.proxy_norm),
    Case("proxy_norm", oracles.proxy_norm, PROXIES, title="gelu in groups"),
    Case("scale_norm", oracles.scale_norm),
    Case("local_response_norm", oracles.local_response_norm, WINDOW),
    Case(
        "local_response_norm",
        oracles.local_response_norm,
        WINDOW | {"average": True},
        title="average",
    ),
    Case("local_response_norm", oracles.local_response_norm, WINDOW | {"size": 2}, title="even"),
    Case(
        "local_response_norm",
        oracles.local_response_norm,
        WINDOW | {"feature_axes": 1},
        title="channels first",
    ),
    Case("dynamic_tanh", oracles.dynamic_tanh),
    Case("dynamic_erf", oracles.dynamic_erf),
    Case("affine", oracles.identity),
]

BY_NAME = {str(case): case for case in CASES}
# Those without a line of their own have no oracle, and their default fields.
FIRST_CASES = [BY_NAME.get(name, Case(name)) for name in VARIANTS]

every_variant = pytest.mark.parametrize("case", FIRST_CASES, ids=str)
every_case = pytest.mark.parametrize(
    "case", FIRST_CASES + [case for case in CASES if case.title], ids=str
)
# Those whose state or whose use of the batch is another than in the first case of their variant.
every_rule = pytest.mark.parametrize(
    "case",
    [*FIRST_CASES, BY_NAME["batch_norm, cumulative"], BY_NAME["ghost_batch_norm, strided"]],
    ids=str,
)


def normal(shape=SHAPE, seed=0, mean=0.5, deviation=1.5) -> np.ndarray:
    values = np.random.default_rng(seed).normal(mean, deviation, shape)
    return values.astype(np.float32)


def two_of_three(shape=SHAPE) -> np.ndarray:
    return np.indices(shape).sum(0) % 3 != 0


@cache
def shapes(case: Case, dtype: str = "float32", rank: int = len(SHAPE)) -> dict[str, Any]:
    """Shapes and dtypes of the variables."""
    x = jax.ShapeDtypeStruct((SHAPE[0], *SHAPE[-rank + 1 :]), dtype)
    return jax.eval_shape(case.layer(use_running_average=False).init, jax.random.key(0), x)


def parameters(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Values away from the initial ones, so that every parameter matters."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.5 + generator.random(leaf.shape)).astype(leaf.dtype),
        shapes(case).get("params", {}),
    )


def after_two_steps(case: Case) -> Any:
    """A replay with statistics away from the initial ones."""
    replay = case.replay()
    for seed in (10, 11):
        replay.update(normal(seed=seed))
    return replay


def variables(case: Case, seed: int = 0) -> dict[str, Any]:
    """Parameters, and the statistics that the replay has after two steps."""
    given: dict[str, Any] = {"params": as_arrays(parameters(case, seed))}
    if not case.keeps_state:
        return given
    if case.oracle is None:
        values = jax.tree.map(
            lambda leaf: 0.5 + np.random.default_rng(seed).random(leaf.shape),
            shapes(case)["batch_stats"],
        )
    else:
        values = after_two_steps(case).state
    return given | {"batch_stats": as_arrays(values)}


def as_arrays(tree) -> Any:
    """In float32, as JAX's arrays."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def apply(layer, variables, x, **options) -> tuple[jax.Array, dict[str, Any]]:
    """Output and new statistics."""
    y, updates = layer.apply(variables, x, mutable=["batch_stats"], **options)
    return y, updates.get("batch_stats", {})


# How often the training step of each case was traced.
TRACES: Counter[str] = Counter()


def loss_of(layer, params, variables, x, weights, counted=True, **options):
    """A sum of the outputs that count; returned beside it, outputs and new statistics."""
    y, statistics = apply(layer, {**variables, "params": params}, x, **options)
    return jnp.where(counted, weights * y, 0).sum(), (y, statistics)


def _step(case, layer, variables, x, mask, counted, weights, tangent):
    TRACES[str(case)] += 1

    def loss(params, x):
        return loss_of(layer, params, variables, x, weights, counted, mask=mask)

    def gradients(x):
        return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)

    (found, (y, statistics)), (curvature, _) = jax.jvp(gradients, (x,), (tangent,))
    return y, statistics, found, curvature


# The compiler's optimizations touch the last bits, so that the cases which stand for their variants
# are compiled as users compile. All others are compiled as tests are, in less time.
_AS_USERS_COMPILE = jax.jit(_step, static_argnums=(0, 1), compiler_options=AS_USERS)
_AS_TESTS_COMPILE = jax.jit(_step, static_argnums=(0, 1))


def train(case: Case, x, mask=None, counted=None, *, given=None, seed: int = 0) -> tuple:
    """A training step with all its derivatives, compiled once for all that is asked of it.

    Args:
        case: What is trained.
        x: Input.
        mask: What counts in the statistics; everything by default.
        counted: What counts in the loss, a random weighted sum; everything by default.
        given: The variables; by default those of `variables` by the seed.
        seed: Of the parameters.

    Returns:
        Output, new statistics, gradients of the loss to parameters and input, and the derivative of
        these along a random direction of the input.
    """
    mask = np.ones(SHAPE, bool) if mask is None else np.broadcast_to(mask, SHAPE)
    counted = np.ones(SHAPE, bool) if counted is None else counted
    given = variables(case, seed) if given is None else given
    run = _AS_TESTS_COMPILE if case.title else _AS_USERS_COMPILE
    layer = case.layer(use_running_average=False)
    results = run(case, layer, given, x, mask, counted, normal(seed=1), normal(seed=2))
    return jax.tree.map(np.asarray, results)


def assert_close(ours, expected, tolerance: float = 1e-5, *, where=True, message: str = ""):
    """Compares arrays to a share of the largest value."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape, message
    where = np.broadcast_to(where, expected.shape)
    largest = np.abs(expected[where]).max(initial=0)
    np.testing.assert_allclose(
        ours[where], expected[where], rtol=tolerance, atol=tolerance * largest, err_msg=message
    )


def assert_finite(tree, message: str = ""):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all(), message
