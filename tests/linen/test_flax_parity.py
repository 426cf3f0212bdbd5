"""The five layers that flax.linen has: the same fields, variables, numbers and errors."""

import dataclasses
import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normlab as nl

FIVE = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
# Fields without which a layer cannot be called for training on six channels.
NEEDED = {name: {} for name in FIVE} | {
    "BatchNorm": {"use_running_average": False},
    "GroupNorm": {"num_groups": 3},
}
ORACLES = {
    "BatchNorm": oracles.batch_norm,
    "LayerNorm": oracles.layer_norm,
    "RMSNorm": oracles.rms_norm,
    "GroupNorm": partial(oracles.group_norm, num_groups=3),
    "InstanceNorm": oracles.instance_norm,
}


def ramp(key, shape, dtype=jnp.float32):
    """An initializer of distinct values; unlike a random one it compiles at once."""
    del key
    return jnp.asarray(np.linspace(-1, 2, np.prod(shape, dtype=int)).reshape(shape).astype(dtype))


def random_array(shape, dtype="float32", seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(0.5, 1.5, shape)
    if np.issubdtype(jnp.dtype(dtype), np.complexfloating):
        x = x + 1j * generator.normal(-0.3, 1.0, shape)
    if np.issubdtype(jnp.dtype(dtype), np.integer):
        x = 3 * x
    return jnp.asarray(x.astype(dtype))


def two_of_three(shape):
    """A mask that keeps two of any three neighbours, along whatever axis."""
    return np.indices(shape).sum(0) % 3 != 0


def signature_of_fields(layer, *, keyword_only):
    return [
        (f.name, f.default)
        for f in dataclasses.fields(layer)
        if f.init and f.kw_only == keyword_only
    ]


@pytest.mark.parametrize("name", FIVE)
def test_fields_keep_order_and_defaults(name):
    theirs, ours = getattr(nn, name), getattr(nl, name)
    assert signature_of_fields(ours, keyword_only=False) == signature_of_fields(
        theirs, keyword_only=False
    )
    assert set(signature_of_fields(theirs, keyword_only=True)) <= set(
        signature_of_fields(ours, keyword_only=True)
    )


@pytest.mark.parametrize("name", FIVE)
def test_call_takes_what_flax_takes(name):
    theirs = inspect.signature(getattr(nn, name).__call__).parameters
    ours = inspect.signature(getattr(nl, name).__call__).parameters
    for parameter in theirs.values():
        assert ours[parameter.name].kind == parameter.kind
        assert ours[parameter.name].default == parameter.default


def test_fields_may_be_given_by_position():
    assert nl.BatchNorm(True, -2, 0.9, 1e-3).momentum == 0.9
    assert nl.GroupNorm(None, 2).group_size == 2
    assert nl.LayerNorm(1e-3, jnp.bfloat16).dtype == jnp.bfloat16


# Numbers.


@dataclass(frozen=True)
class Case:
    """A layer, its fields, and what it is fed."""

    layer: str
    fields: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (4, 3, 6)
    dtype: str = "float32"
    mask: tuple[int, ...] | None = None

    def __str__(self):
        parts = [f"{key}={getattr(value, '__name__', value)}" for key, value in self.fields.items()]
        parts += [self.dtype] * (self.dtype != "float32")
        parts += [f"mask={self.mask}"] * (self.mask is not None)
        return "-".join([self.layer, *parts, f"{len(self.shape)}d"]).replace(" ", "")


BFLOAT16 = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
NO_FLOAT32 = {"force_float32_reductions": False}
CUSTOM = {"scale_init": ramp, "bias_init": ramp}

NO_AFFINE = {"use_scale": False, "use_bias": False}

CASES = [
    Case("BatchNorm", shape=(8, 6)),
    Case("BatchNorm", {"momentum": 0.9, "epsilon": 1e-2, "use_bias": False}, (3, 2, 2, 5)),
    Case("BatchNorm", {"axis": 1, "use_scale": False}),
    Case("BatchNorm", {"axis": 0, **CUSTOM}),
    Case("BatchNorm", {"axis": (2, 1), **CUSTOM}),
    Case("BatchNorm", {"axis": [-1, 1], **CUSTOM}, (3, 4, 2, 5)),
    Case("BatchNorm", {"axis": -2, "use_fast_variance": False}, mask=(4, 1, 6)),
    Case("BatchNorm", {"param_dtype": jnp.bfloat16}, mask=(4, 1, 1)),
    Case("BatchNorm", NO_FLOAT32, mask=(4, 3, 6)),
    Case("BatchNorm", {"dtype": jnp.float32}, dtype="float16"),
    Case("BatchNorm", dtype="bfloat16"),
    Case("BatchNorm", BFLOAT16, dtype="bfloat16"),
    Case("BatchNorm", dtype="complex64"),
    Case("BatchNorm", {"dtype": jnp.complex64, "axis": 1}, dtype="complex64", mask=(4, 1, 6)),
    Case("BatchNorm", dtype="int32"),
    Case("BatchNorm", NO_AFFINE, dtype="int32"),
    Case("LayerNorm", {"reduction_axes": 1, **CUSTOM}),
    Case("LayerNorm", {"reduction_axes": (2, 1, -1), "epsilon": 1e-2, "use_bias": False}),
    Case("LayerNorm", {"reduction_axes": [0, 1, 2], "feature_axes": (1, 2), **CUSTOM}),
    Case("LayerNorm", {"reduction_axes": -2, "feature_axes": (1, 3), **CUSTOM}, (2, 3, 4, 5)),
    Case("LayerNorm", {"feature_axes": (-1, 1), "use_fast_variance": False}, mask=(4, 3, 6)),
    Case("LayerNorm", {"dtype": jnp.float32, **NO_FLOAT32}, dtype="bfloat16"),
    Case("LayerNorm", NO_AFFINE, dtype="bfloat16"),
    Case("LayerNorm", dtype="complex64"),
    Case("RMSNorm", dtype="bfloat16"),
    Case("RMSNorm", {"reduction_axes": (1, 2), "feature_axes": (1, 2), "scale_init": ramp}),
    Case("RMSNorm", {"reduction_axes": 1, "use_scale": False, "epsilon": 1e-2}),
    Case("RMSNorm", {"use_fast_variance": False}, mask=(4, 3, 6)),
    Case("RMSNorm", dtype="complex64"),
    Case("GroupNorm", {"num_groups": 3, **CUSTOM}),
    Case("GroupNorm", shape=(2, 3, 64), dtype="bfloat16"),
    Case("GroupNorm", {"num_groups": None, "group_size": 2, "use_bias": False}),
    Case("GroupNorm", {"num_groups": 2, "reduction_axes": (0, 1, -1)}, (2, 3, 2, 6)),
    Case("GroupNorm", {"num_groups": 2, "reduction_axes": [-1], "use_scale": False}),
    Case("GroupNorm", {"num_groups": 2, "epsilon": 1e-2, **NO_FLOAT32}, (5, 6)),
    Case("GroupNorm", {"num_groups": 2, "use_fast_variance": False}, mask=(4, 3, 6)),
    Case("GroupNorm", {"num_groups": 3}, dtype="complex64"),
    Case("InstanceNorm", dtype="bfloat16"),
    Case("InstanceNorm", {"feature_axes": (-1, 1), **CUSTOM}, (2, 3, 4, 5)),
    Case("InstanceNorm", {"feature_axes": 1, "use_scale": False, **NO_FLOAT32}),
    Case("InstanceNorm", {"use_fast_variance": False}, mask=(4, 3, 6)),
]


def assert_trees_close(ours, theirs, tolerance):
    """The same structure and dtypes, and values up to `tolerance`, or one rounding if coarser."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, leaf), expected in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        assert leaf.dtype == expected.dtype, path
        if tolerance and leaf.dtype in (jnp.bfloat16, jnp.float16):
            tolerance = float(jnp.finfo(leaf.dtype).eps)
        wide = np.complex128 if np.iscomplexobj(expected) else np.float64
        leaf, expected = np.asarray(leaf).astype(wide), np.asarray(expected).astype(wide)
        np.testing.assert_allclose(
            leaf,
            expected,
            rtol=tolerance,
            atol=tolerance * max(1, np.abs(expected).max()),
            err_msg=jax.tree_util.keystr(path),
        )


def training_step(module, variables, x, mask, weights):
    """One step of gradient descent: the new variables, and the output with the gradients."""

    def loss(params, x):
        y, updates = module.apply({**variables, "params": params}, x, mask=mask, mutable=True)
        terms = weights * (y.real + 2 * y.imag if jnp.iscomplexobj(y) else y.astype(jnp.float32))
        return terms.sum(), (y, updates)

    differentiable = jnp.issubdtype(x.dtype, jnp.inexact)
    (_, (y, updates)), gradients = jax.value_and_grad(
        loss, argnums=(0, 1) if differentiable else (0,), has_aux=True
    )(variables["params"], x)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients[0])
    return {**variables, **updates, "params": params}, (y, gradients)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_steps(case):
    """Variables at initialization; then output, gradients and variables of three steps."""
    mask = None if case.mask is None else two_of_three(case.mask)
    weights = random_array(case.shape, seed=1)
    batches = [random_array(case.shape, case.dtype, seed) for seed in (2, 3, 4)]
    training = {"use_running_average": False} if case.layer == "BatchNorm" else {}
    layers = [getattr(library, case.layer)(**case.fields, **training) for library in (nn, nl)]
    theirs, ours = jax.jit(
        lambda key, x: [{"params": {}} | layer.init(key, x, mask=mask) for layer in layers]
    )(jax.random.key(5), batches[0])
    if "batch_stats" in ours and case.dtype == "complex64":
        # Flax starts a complex mean as a real one; here it keeps one type throughout.
        assert ours["batch_stats"]["mean"].dtype == jnp.complex64
        theirs["batch_stats"]["mean"] = theirs["batch_stats"]["mean"].astype(jnp.complex64)
    assert_trees_close(ours, theirs, 0)

    @jax.jit  # both at once, as it is compilation that takes the time
    def step(theirs, ours, x):
        return [
            training_step(layer, variables, x, mask, weights)
            for layer, variables in zip(layers, (theirs, ours), strict=True)
        ]

    for x in batches:
        (theirs, their_result), (ours, our_result) = step(theirs, ours, x)
        assert_trees_close((ours, our_result), (theirs, their_result), 1e-5)


@pytest.mark.parametrize(
    "fields",
    [{}, {"axis": 1}, {"axis": (2, 1)}, {"dtype": jnp.bfloat16}, BFLOAT16 | NO_FLOAT32],
    ids=str,
)
def test_evaluation(fields):
    x, (mean, root) = random_array((4, 3, 6)), random_array((2, 4, 3, 6))
    axes = np.atleast_1d(fields.get("axis", -1)) % 3
    one = tuple(slice(None) if axis in axes else 0 for axis in range(3))
    statistics = {"mean": mean[one], "var": root[one] ** 2}
    params = {"scale": root[one], "bias": mean[one]}
    theirs, ours = jax.jit(
        lambda variables, x: [
            library.BatchNorm(**fields).apply(variables, x, use_running_average=True)
            for library in (nn, nl)
        ]
    )({"params": params, "batch_stats": statistics}, x)
    assert_trees_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("name", FIVE)
def test_low_precision_reductions_are_no_worse(name):
    """Statistics in bfloat16 are an option of Flax; ours may be nearer the truth, not further."""
    low = {**BFLOAT16, **NO_FLOAT32, **NEEDED[name]}
    x = random_array((4, 3, 6), "bfloat16")
    (theirs, their_variables), (ours, our_variables) = (
        jax.jit(getattr(library, name)(**low).init_with_output)(jax.random.key(0), x)
        for library in (nn, nl)
    )
    assert ours.dtype == theirs.dtype == jnp.bfloat16
    assert_trees_close(our_variables["params"], their_variables["params"], 0)
    truth = ORACLES[name](x)
    our_error, their_error = (np.abs(np.asarray(y, float) - truth).max() for y in (ours, theirs))
    assert our_error <= max(their_error, 2**-7 * np.abs(truth).max())
    if name == "BatchNorm":
        apply = partial(nl.BatchNorm(**low).apply, mutable=["batch_stats"])
        _, updates = jax.eval_shape(apply, our_variables, x)
        for statistics in (our_variables["batch_stats"], updates["batch_stats"]):
            assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
@pytest.mark.parametrize("name", FIVE)
def test_numpy_input_and_mask(name, dtype):
    """Constants arrive in the layer as the NumPy arrays that they are."""
    x, mask = np.asarray(random_array((4, 3, 6))).astype(dtype), two_of_three((4, 3, 6))
    results = []
    for library in (nn, nl):
        layer = getattr(library, name)(**NEEDED[name])
        initialize = jax.jit(partial(layer.init_with_output, x=x, mask=mask))
        results.append(initialize(jax.random.key(0)))
    assert_trees_close(results[1], results[0], 1e-5)


# What Flax's own tests ask, with their tolerances.


@pytest.mark.parametrize(
    ("layer", "offset", "axes", "tolerance"),
    [
        (nl.LayerNorm(use_fast_variance=False), 1e6, -1, 1e-3),
        (nl.LayerNorm(reduction_axes=(1, 2), use_fast_variance=False), 1e6, (1, 2), 1e-3),
        (nl.InstanceNorm(use_fast_variance=False), 1e4, (1, 2), 1e-6),
    ],
    ids=["layer", "layer over two axes", "instance"],
)
def test_two_pass_variance_is_the_one_line_formula_in_float32(layer, offset, axes, tolerance):
    """Flax's tests compare with this line at an offset where float32 itself rounds coarsely.

    The mean then lies off the true one by up to half a step of float32, in both.
    """
    x = random_array((2, 3, 4, 5)) + np.float32(offset)
    params = {"scale": np.ones(5, np.float32), "bias": np.zeros(5, np.float32)}
    y = layer.clone(epsilon=1e-5).apply({"params": params}, x)
    deviation = jax.lax.rsqrt(x.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        y, (x - x.mean(axes, keepdims=True)) * deviation, atol=tolerance, rtol=tolerance
    )


SMALL = {"scale_init": nn.initializers.uniform(), "bias_init": nn.initializers.uniform()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nl.LayerNorm(feature_axes=(1, 2)), nl.InstanceNorm(feature_axes=(1, 2))),
        (nl.LayerNorm(reduction_axes=(1, 2), feature_axes=-1), nl.InstanceNorm(feature_axes=-1)),
        (
            nl.LayerNorm(reduction_axes=-2, feature_axes=(1, 3), **SMALL),
            nl.InstanceNorm(feature_axes=(1, -1), **SMALL),
        ),
        (nl.LayerNorm(reduction_axes=(1, 2, 3), **SMALL), nl.GroupNorm(num_groups=1, **SMALL)),
        (nl.InstanceNorm(**SMALL), nl.GroupNorm(num_groups=None, group_size=1, **SMALL)),
        (nl.InstanceNorm(**SMALL), nl.GroupNorm(num_groups=5, **SMALL)),
    ],
)
def test_layers_that_are_special_cases_of_each_other(one, other):
    x = random_array((2, 3, 4, 5))
    variables, other_variables = (layer.init(jax.random.key(1), x) for layer in (one, other))
    assert_trees_close(other_variables, variables, 0)
    # Not compiled as a whole: fusion orders sums differently, by more than Flax's tests allow.
    np.testing.assert_allclose(other.apply(variables, x), one.apply(variables, x), atol=1e-7)


def test_group_norm_of_stacked_batches_with_negative_reduction_axes():
    x = random_array((3, 4, 6))
    layer = nl.GroupNorm(num_groups=2, reduction_axes=(-3, -2, -1))
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    stacked = jax.jit(layer.apply)(variables, jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(stacked[0], y, atol=1e-5)
    np.testing.assert_allclose(stacked[1], y, atol=1e-4)


LEADING_AXIS = (
    "The channel axes cannot include the leading dimension as this is assumed to be the batch axis."
)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("GroupNorm", {"num_groups": 4}, "4.*6|6.*4"),
        ("GroupNorm", {"num_groups": 0}, "0"),
        ("GroupNorm", {"num_groups": None, "group_size": 4}, "4.*6|6.*4"),
        ("GroupNorm", {"num_groups": None}, "num_groups.*group_size"),
        ("GroupNorm", {"num_groups": 3, "group_size": 2}, "num_groups.*group_size"),
        ("GroupNorm", {"num_groups": 3, "reduction_axes": (0, 1)}, "reduction.axes"),
        ("GroupNorm", {"num_groups": 3, "reduction_axes": ()}, None),
        ("InstanceNorm", {"feature_axes": 0}, LEADING_AXIS),
        ("InstanceNorm", {"feature_axes": -3}, LEADING_AXIS),
        ("InstanceNorm", {"feature_axes": (0, 2)}, LEADING_AXIS),
        ("InstanceNorm", {"feature_axes": (1, -3)}, LEADING_AXIS),
        ("BatchNorm", {}, "use_running_average"),
    ],
    ids=str,
)
def test_errors_of_flax(name, fields, message):
    with pytest.raises((ValueError, IndexError)):
        getattr(nn, name)(**fields).init(jax.random.key(0), random_array((4, 3, 6)))
    with pytest.raises(ValueError, match=message):
        getattr(nl, name)(**fields).init(jax.random.key(0), random_array((4, 3, 6)))


def test_use_running_average_at_both_places_is_an_error():
    x = random_array((4, 3, 6))
    with pytest.raises(ValueError, match="use_running_average"):
        nl.BatchNorm(use_running_average=False).init(jax.random.key(0), x, True)


@pytest.mark.parametrize("name", ["BatchNorm", "RMSNorm"])
def test_random_initializers_draw_the_same_parameters(name):
    random = nn.initializers.uniform(1.0)
    fields = {"scale_init": random, "param_dtype": jnp.bfloat16, **NEEDED[name]}
    fields |= {} if name == "RMSNorm" else {"bias_init": random}
    theirs, ours = (
        nn.Sequential([nn.Dense(6), getattr(library, name)(**fields)]).init(
            jax.random.key(0), random_array((4, 3, 6))
        )
        for library in (nn, nl)
    )
    assert_trees_close(ours, theirs, 0)


def test_evaluation_without_statistics_is_an_error():
    with pytest.raises(nn.module.errors.ScopeCollectionNotFound):
        nl.BatchNorm().apply(
            {"params": {"scale": jnp.ones(6), "bias": jnp.ones(6)}},
            random_array((4, 6)),
            use_running_average=True,
        )


# In models.


class Twice(nn.Module):
    norm: Any
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        norm = self.norm(name="norm", use_running_average=False, axis_name=self.axis_name)
        x = norm(x)
        return x, norm(2 * x + 1)


def test_initialization_in_train_mode_needs_no_named_axis():
    x = random_array((2, 4))
    initialize = jax.jit(Twice(nl.BatchNorm, "batch").init_with_output)
    (first, second), variables = initialize(jax.random.key(0), x)
    np.testing.assert_allclose(first, second, rtol=1e-4)
    np.testing.assert_array_equal(variables["batch_stats"]["norm"]["mean"], np.zeros(4))


@pytest.mark.parametrize("axis_name", [None, "batch"])
def test_a_layer_used_twice_updates_twice(axis_name):
    x = random_array((3, 5, 4))
    results = []
    for norm in (nn.BatchNorm, nl.BatchNorm):
        model = Twice(norm, axis_name)
        variables = jax.jit(model.init)(jax.random.key(0), x[0])
        apply = partial(model.apply, mutable=["batch_stats"])
        step = jax.jit(jax.vmap(apply, in_axes=(None, 0), axis_name="batch"))
        for _ in range(3):
            y, updates = step(variables, x)
            # Alike on all of the axis, or, without its name, that of its first member.
            variables |= jax.tree.map(lambda leaf: leaf[0], updates)
        results.append((y, variables))
    assert_trees_close(results[1], results[0], 1e-5)


def test_partitioned_parameters_and_shape_evaluation():
    """Metadata boxes that an initializer puts around a parameter stay where Flax has them."""
    x = random_array((4, 6))
    fields = {
        "scale_init": nn.with_partitioning(nn.initializers.ones, ("model",)),
        "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
    }
    shapes = [
        jax.eval_shape(library.LayerNorm(**fields).init, jax.random.key(0), x)
        for library in (nn, nl)
    ]
    assert shapes[0] == shapes[1]
    theirs, ours = (
        jax.jit(library.LayerNorm(**fields).init_with_output)(jax.random.key(0), x)
        for library in (nn, nl)
    )
    assert_trees_close(ours, theirs, 1e-5)


def test_tabulate_lists_the_variables_of_flax():
    x = random_array((4, 6))
    tables = [
        nn.tabulate(library.BatchNorm(use_running_average=False), jax.random.key(0))(x)
        for library in (nn, nl)
    ]
    assert tables[0] == tables[1]


# Over named axes.


def per_device(layer, groups=None):
    """Applies a layer to one example block per device; results carry the devices as first axis."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

    def block(variables, x, weights):
        def loss(variables, x):
            y, updates = layer.apply(variables, x[0], mutable=True)
            return (y * weights[0]).sum(), (y, updates.get("batch_stats", {}))

        gradients, results = jax.grad(loss, argnums=1, has_aux=True)(variables, x)
        return jax.tree.map(lambda leaf: leaf[None], (results, gradients[0]))

    return jax.jit(
        jax.shard_map(
            block,
            mesh=mesh,
            in_specs=(P(), P("batch"), P("batch")),
            out_specs=P("batch"),
            # JAX does not track variation over groups of devices.
            check_vma=groups is None,
        )
    )


GROUPS = ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["all", "groups"])
@pytest.mark.parametrize("name", FIVE)
def test_statistics_over_devices(name, groups):
    """shard_map with one block a device; also the gradient, which crosses devices."""
    x, weights = random_array((8, 3, 6)), random_array((8, 3, 6), seed=1)
    # GroupNorm and InstanceNorm take the first axis for examples: give each block a single one.
    shape = (1, 3, 6) if name in ("GroupNorm", "InstanceNorm") else (3, 6)
    x, weights = x.reshape((8, *shape)), weights.reshape((8, *shape))
    results = []
    for library in (nn, nl):
        layer = getattr(library, name)(**NEEDED[name])
        variables = jax.jit(layer.init)(jax.random.key(0), x[0])
        layer = layer.clone(axis_name="batch", axis_index_groups=groups)
        results.append(per_device(layer, groups)(variables, x, weights))
    assert_trees_close(results[1], results[0], 1e-5)


@pytest.mark.parametrize("name", FIVE)
def test_statistics_over_a_mapped_axis(name):
    x, mask = random_array((5, 2, 3, 6)), two_of_three((2, 3, 6))
    results = []
    for library in (nn, nl):
        layer = getattr(library, name)(**NEEDED[name])
        variables = jax.jit(layer.init)(jax.random.key(0), x[0])
        layer = layer.clone(axis_name="batch")
        apply = partial(layer.apply, variables, mask=mask, mutable=True)
        results.append(jax.jit(jax.vmap(apply, axis_name="batch"))(x))
    assert_trees_close(results[1], results[0], 1e-5)


def test_groups_of_devices_under_pmap():
    x = random_array((8, 3, 6))
    results = []
    for library in (nn, nl):
        layer = library.BatchNorm(
            use_running_average=False, axis_name="batch", axis_index_groups=GROUPS
        )
        variables = layer.init(jax.random.key(0), x[0])
        apply = partial(layer.apply, variables, mutable=["batch_stats"])
        results.append(jax.pmap(apply, axis_name="batch")(x))
    assert_trees_close(results[1], results[0], 1e-5)
