"""The five layers that flax.nnx has: the same constructor, attributes, variables and numbers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normlab.nnx

FIVE = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
FEATURES = 6
NEEDED = {name: {} for name in FIVE} | {"GroupNorm": {"num_groups": 3}}
CASES = [
    ("BatchNorm", {"momentum": 0.5}),
    ("BatchNorm", {"axis": 1, "epsilon": 0.1, "use_scale": False}),
    ("LayerNorm", {"reduction_axes": (1, 2), "use_bias": False}),
    ("LayerNorm", {"use_fast_variance": False}),
    ("RMSNorm", {"epsilon": 0.1}),
    ("GroupNorm", {"num_groups": None, "group_size": 2}),
    ("GroupNorm", {"num_groups": 3, "dtype": jnp.float16}),
    ("InstanceNorm", {"param_dtype": jnp.bfloat16}),
]


def pair(name, *args, rngs=None, **fields):
    return [
        getattr(module, name)(*args, **fields, rngs=nnx.Rngs(0) if rngs is None else rngs())
        for module in (nnx, normlab.nnx)
    ]


def assert_same_variables(ours, theirs):
    """Compares paths, types, metadata and values."""
    ours, theirs = (dict(nnx.to_flat_state(nnx.state(layer))) for layer in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, variable in ours.items():
        assert type(variable) is type(theirs[path])
        assert variable.get_metadata() == theirs[path].get_metadata()
        assert variable.dtype == theirs[path].dtype
        np.testing.assert_allclose(variable[...], theirs[path][...], rtol=1e-6)


def pure(layer, kind=nnx.Variable):
    return nnx.to_pure_dict(nnx.state(layer, kind))


@nnx.jit
def train_step(layer, x, target):
    def loss(layer):
        y = layer(x)
        return jnp.mean((y - target) ** 2), y

    (_, y), gradients = nnx.value_and_grad(loss, has_aux=True)(layer)
    changed = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(layer, nnx.Param), gradients)
    nnx.update(layer, changed)
    return y


@pytest.mark.parametrize("name", FIVE)
def test_constructor_takes_what_flax_takes(name):
    theirs = inspect.signature(getattr(nnx, name).__init__).parameters
    ours = inspect.signature(getattr(normlab.nnx, name)).parameters
    for parameter in theirs.values():
        if parameter.name == "self":
            continue
        mine = ours[parameter.name]
        assert mine.kind == parameter.kind
        if not (callable(parameter.default) or parameter.name.endswith("metadata")):
            if parameter.name == "rngs":  # Ours is not asked for where nothing is learned.
                continue
            assert mine.default == parameter.default
    positional = [p.name for p in theirs.values() if p.kind == p.POSITIONAL_OR_KEYWORD][1:]
    assert list(ours)[: len(positional)] == positional


@pytest.mark.parametrize("name", FIVE)
def test_attributes_and_variables_are_those_of_flax(name):
    fields = NEEDED[name] | {"epsilon": 0.5, "axis_name": "batch"}
    if name != "RMSNorm":
        fields["use_bias"] = False
    theirs, ours = pair(name, FEATURES, **fields)
    assert_same_variables(ours, theirs)
    for attribute, value in vars(theirs).items():
        # What GroupNorm was not given stays None here, where it can be set.
        if attribute.startswith("_") or attribute in (
            "promote_dtype",
            "feature_axis",
            "group_size",
        ):
            continue
        mine = getattr(ours, attribute)
        assert mine == value if not isinstance(value, nnx.Variable) else type(mine) is type(value)


@pytest.mark.parametrize("name", FIVE)
def test_same_keys_give_the_same_initial_values(name):
    fields = NEEDED[name] | {"scale_init": nnx.initializers.normal()}
    if name != "RMSNorm":
        fields["bias_init"] = nnx.initializers.uniform()
    streams = [nnx.Rngs(params=3), nnx.Rngs(params=3)]
    remaining = iter(streams)
    theirs, ours = pair(name, FEATURES, rngs=lambda: next(remaining), **fields)
    assert_same_variables(ours, theirs)
    # Whatever is built next draws the same keys as well.
    assert streams[0].params.count[...] == streams[1].params.count[...]


def test_metadata_of_arguments_and_initializers():
    fields = {
        "scale_init": nnx.with_metadata(nnx.initializers.ones, note="from the initializer"),
        "bias_metadata": {"note": "from the argument"},
    }
    theirs, ours = pair("LayerNorm", FEATURES, **fields)
    assert_same_variables(ours, theirs)
    assert ours.scale.note == "from the initializer"
    assert ours.bias.note == "from the argument"


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_several_steps_of_training_and_evaluation(name, fields):
    generator = np.random.default_rng(0)
    shape = (4, FEATURES, 2) if fields.get("axis") == 1 else (4, 2, FEATURES)
    dtype = fields.get("dtype", jnp.float32)
    theirs, ours = pair(name, FEATURES, **fields)
    tolerance = 2e-3 if dtype == jnp.float16 else 2e-5
    if fields.get("param_dtype") == jnp.bfloat16:
        tolerance = 2e-2
    for _ in range(3):
        x = generator.normal(1, 2, shape).astype(dtype)
        target = generator.normal(size=shape).astype(dtype)
        expected, y = train_step(theirs, x, target), train_step(ours, x, target)
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        ),
        pure(ours),
        pure(theirs),
    )
    for layer in (theirs, ours):
        layer.eval()
    call = nnx.jit(lambda layer: layer(x))
    np.testing.assert_allclose(call(ours), call(theirs), rtol=tolerance, atol=tolerance)


def test_half_precision_keeps_running_statistics_where_flax_rounds_them():
    # In `flax.nnx`, dtype= also rounds input, running mean and variance, here to a multiple of 4.
    theirs, ours = pair("BatchNorm", 1, dtype=jnp.bfloat16, use_running_average=True)
    for layer in (theirs, ours):
        layer.mean[...] = jnp.asarray([1001.0])
    x = np.asarray([[1002.0]], np.float32)
    call = nnx.jit(lambda layer: layer(x))
    np.testing.assert_array_equal(call(theirs), [[0.0]])
    np.testing.assert_array_equal(call(ours), [[1.0]])
    assert call(ours).dtype == call(theirs).dtype == jnp.bfloat16


def test_running_statistics_take_in_what_was_given_where_flax_rounds_it():
    theirs, ours = pair("BatchNorm", 1, dtype=jnp.bfloat16, momentum=0.0)
    x = np.asarray([[1001.0], [1002.0]], np.float32)
    for layer in (theirs, ours):
        nnx.jit(lambda layer: layer(x))(layer)
        assert layer.mean.dtype == layer.var.dtype == jnp.float32
    np.testing.assert_array_equal([theirs.mean[...], theirs.var[...]], [[1000.0], [0.0]])
    np.testing.assert_allclose([ours.mean[...], ours.var[...]], [[1001.5], [0.25]])


def test_statistics_of_double_precision_and_complex_input_are_not_cast():
    # Flax takes the real part, with a warning.
    layer = normlab.nnx.BatchNorm(1, momentum=0.0, use_scale=False, use_bias=False)
    nnx.jit(lambda layer: layer(np.asarray([[1 + 1j], [3 + 3j]], np.complex64)))(layer)
    np.testing.assert_array_equal(layer.mean[...], [2 + 2j])
    layer = normlab.nnx.BatchNorm(1, param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
    assert layer.mean.dtype == jnp.complex64
    assert layer.var.dtype == jnp.float32
    with jax.enable_x64(True):
        layer = normlab.nnx.BatchNorm(1, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        assert layer.mean.dtype == layer.var.dtype == jnp.float64


@pytest.mark.parametrize("name", FIVE)
def test_missing_rngs_are_refused(name):
    for module in (nnx, normlab.nnx):
        with pytest.raises(TypeError, match="rngs"):
            getattr(module, name)(FEATURES, **NEEDED[name])


def test_rngs_are_not_asked_for_where_nothing_is_learned():
    layer = normlab.nnx.BatchNorm(2, use_scale=False, use_bias=False)
    assert (layer.scale, layer.bias) == (None, None)
    assert normlab.nnx.Identity(2).num_features == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_groups": 4}, "num_groups=4 does not divide the 6 channels"),
        ({"num_groups": 3, "group_size": 2}, "expected one of them"),
        ({"num_groups": None}, "expected one of them"),
        ({"num_groups": None, "group_size": 4}, "group_size=4 does not divide the 6 channels"),
    ],
)
def test_groups_are_checked_in_construction(fields, message):
    with pytest.raises(ValueError, match="group"):
        nnx.GroupNorm(6, **fields, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        normlab.nnx.GroupNorm(6, **fields, rngs=nnx.Rngs(0))


def test_arguments_without_effect_are_refused():
    with pytest.raises(TypeError, match="LayerNorm: got an unexpected keyword argument 'axis'"):
        normlab.nnx.LayerNorm(2, axis=1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"RMSNorm: got an unexpected keyword.*'bias_metadata'"):
        normlab.nnx.RMSNorm(2, bias_metadata={}, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="BatchNorm: missing a required argument: 'num_features'"):
        normlab.nnx.BatchNorm(rngs=nnx.Rngs(0))


def half(arrays, dtype):
    """Rounds to half precision what is there, and keeps what it was given."""
    half.given = [None if a is None else (a.shape, a.dtype) for a in arrays], dtype
    return tuple(a if a is None else a.astype(jnp.float16) for a in arrays)


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("train", [True, False])
def test_promote_dtype_converts_what_flax_converts(name, train):
    """The same tuple; the running statistics in evaluation alone, and then of at least float32."""
    fields = NEEDED[name] | {"promote_dtype": half, "dtype": jnp.float16}
    if name == "BatchNorm":
        fields["use_running_average"] = not train
    theirs, ours = pair(name, FEATURES, **fields)
    for layer in (theirs, ours):
        layer.scale[...] = jnp.linspace(0.5, 1.7, FEATURES)
    x = np.random.default_rng(0).normal(3, 2, (6, FEATURES)).astype(np.float32)
    expected = theirs(jnp.asarray(x))
    given = half.given
    y = ours(x)
    assert half.given == given
    assert y.dtype == expected.dtype == jnp.float16
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-3)
    for variable in jax.tree.leaves(nnx.state(ours)):
        assert variable.dtype == jnp.float32


def test_promote_dtype_sees_scale_and_bias_of_the_call_and_must_return_as_many():
    x, scale = np.ones((2, 3), np.float32), np.float32([1 + 2**-13, 2, 3])
    layer = normlab.nnx.LayerNorm(3, promote_dtype=half, rngs=nnx.Rngs(0))
    rounded = layer(np.float32([[1, 2, 4]]), scale=scale)
    np.testing.assert_array_equal(
        rounded, layer(np.float32([[1, 2, 4]]), scale=np.float32([1, 2, 3]))
    )
    layer.promote_dtype = lambda arrays, dtype: arrays[:2]
    with pytest.raises(
        ValueError, match="LayerNorm: promote_dtype was given 3 arrays and returned 2"
    ):
        layer(x)


def test_positional_mask_is_refused():
    # The second argument of `flax.nnx.RMSNorm`, of no other layer there.
    layer = normlab.nnx.RMSNorm(2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"array of shape \(3, 2\).*mask=\.\.\."):
        layer(np.ones((3, 2), np.float32), np.ones((3, 2), bool))


def test_undecided_statistics_are_refused():
    x = np.ones((2, 3), np.float32)
    for layer in pair("BatchNorm", 3, use_running_average=None):
        with pytest.raises(ValueError, match="use_running_average"):
            layer(x)


def test_features_of_the_input_are_checked():
    # A layer of one feature would broadcast: its running mean would take the shape of the batch's.
    layer = normlab.nnx.BatchNorm(1, use_scale=False, use_bias=False)
    with pytest.raises(ValueError, match=r"num_features=1, but the input of shape \(2, 3\)"):
        layer(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"num_features=6 gives 1 sizes for 2 feature axes"):
        normlab.nnx.LayerNorm(6, feature_axes=(1, 2), rngs=nnx.Rngs(0))
