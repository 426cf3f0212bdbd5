"""What a function cannot be given is refused by its name and that of the argument."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import functional

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 8)), jnp.float32)
MOMENTS = functional.moments(X, (0, 1))
OF_ROWS = functional.moments(X, (1, 2))
PARTS = functional.ghost_parts(4, 2, "error")
BESIDE = jnp.ones((1, 1, 8))
OF_BATCHES = jnp.ones((2, 8))
# A call of each function that is right.
CALLS = {
    "average_moments": (OF_ROWS,),
    "converged_direction": {"weight": X[0], "u": jnp.ones((1, 8)), "epsilon": 1e-12},
    "dynamic_erf": (X, 0.5, 0.0),
    "dynamic_tanh": (X, 0.5),
    "gather_groups": {"groups": OF_ROWS, "axis_name": "i"},
    "gathered": (X, 0),
    "ghost_parts": (4, 2, "error"),
    "group_moments": (X, (1,), 2),
    "length": (X, (2,)),
    "lie_within_devices": (X, PARTS, 0, "strided"),
    "local_response": {"x": X, "size": 3, "k": 1.0, "alpha": 1.0, "beta": 0.5, "average": False},
    "mix_moments": (MOMENTS, MOMENTS, 0.5),
    "moments": (X, (0, 1)),
    "normalize": {"x": X, "mean": BESIDE, "variance": BESIDE, "epsilon": 1e-5},
    "normalize_by_own_moments": {"x": X, "axes": (1, 2), "epsilon": 1e-5},
    "normalize_weight": {"weight": X, "axes": (0, 1), "epsilon": 1e-5},
    "pool_axes": (MOMENTS, (2,)),
    "pool_moments": (OF_ROWS,),
    "proxy_normalize": {
        "y": X,
        "activation": jax.nn.relu,
        "proxy_scale": BESIDE,
        "proxy_bias": BESIDE,
        "scale": None,
        "bias": None,
        "samples": 4,
        "epsilon": 1e-5,
    },
    "scaled_standardize_weight": {"weight": X, "axes": (0, 1), "gain": BESIDE, "epsilon": 1e-5},
    "small_beside": (X, BESIDE),
    "spec_of": (X,),
    "spectral_normalize": {
        "weight": X,
        "u": jnp.ones((1, 8)),
        "sigma": jnp.ones(()),
        "steps": 1,
        "epsilon": 1e-12,
    },
    "split_groups": (X, PARTS[0], 0, "strided"),
    "spread_as": (X, (None, None, None)),
    "spread_groups": (X[:2, :1], PARTS[0], 0, "strided"),
    "squared_magnitude": (X,),
    "standardize_weight": {"weight": X, "axes": (0, 1), "epsilon": 1e-5},
    "swish": (X, BESIDE),
    "thresholded_linear": (X, BESIDE),
    "unbiased": (MOMENTS,),
    "update_running": {
        "mean": jnp.zeros(8),
        "variance": jnp.ones(8),
        "updates": jnp.zeros(()),
        "batch_mean": OF_BATCHES,
        "batch_variance": OF_BATCHES,
        "counts": OF_BATCHES,
        "momentum": 0.9,
        "debias": False,
    },
}
# None of these is a value of any argument but those named beside it.
IMPOSSIBLE = [
    (object(), ()),
    ("no", ()),
    (float("nan"), ()),
    (-1, ("beta", "channel_axis", "alpha", "shift", "v", "threshold")),
    (10**400, ()),
    (1j, ()),
    ([[0, 1], [1, 2]], ()),
    ((7,), ()),
    (np.array(["a"]), ()),
    (jnp.ones((5, 7), jnp.int8), ("small", "any dtype")),
    (jnp.ones(X.shape, jnp.float8_e4m3fn), ()),
]


# Their first argument may also be of integers or booleans.
OF_ANY_DTYPE = (
    *("gathered", "lie_within_devices", "small_beside", "spec_of", "split_groups"),
    *("spread_as", "spread_groups", "squared_magnitude"),
)


def exported():
    return {
        name: value
        for name, value in vars(functional).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def test_every_function_has_a_call_here():
    assert set(exported()) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_cannot_be_are_refused(name):
    """They ended in errors from below, or in NaN: a negative epsilon, a mask of numbers."""
    function, right = exported()[name], CALLS[name]
    signature = inspect.signature(function)
    if isinstance(right, tuple):
        right = signature.bind(*right).arguments

    def call(**changes):
        return function(**{**right, **changes})

    def refused(index):
        call()
        for place, argument in enumerate(signature.parameters):
            alias = "any dtype" if place == 0 and name in OF_ANY_DTYPE else argument
            for value, taken_by in IMPOSSIBLE:
                if argument in taken_by or alias in taken_by:
                    continue
                with pytest.raises(ValueError, match=f"^{name}: {argument}=.* was given; expected"):
                    call(**{argument: value})
        return index

    jax.vmap(refused, axis_name="i")(jnp.arange(2))
    with pytest.raises(TypeError, match=f"^{name}: .*expected {name}\\("):
        function()
    with pytest.raises(TypeError, match=f"^{name}: .*unknown"):
        call(unknown=1)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: functional.moments(X, -1), "axes=-1"),
        (lambda: functional.moments(X, (0, 3)), r"axes=\(0, 3\)"),
        (lambda: functional.moments(X, (1, 1)), r"axes=\(1, 1\)"),
        (lambda: functional.moments(X.astype(int), (0,)), "x=int32"),
        (lambda: functional.moments(X, (0,), mask=X[:1] > 0), r"mask=bool\[1,3,8\]"),
        (lambda: functional.moments(X, (0,), mask=jnp.ones(X.shape)), "mask=float32"),
        (lambda: functional.moments(X, (0,), stored=X[:1]), "stored="),
        (lambda: functional.moments(X, (0,), axis_name="i"), "axis_name='i'"),
        (lambda: functional.moments(X, (0,), axis_index_groups=[[0]]), "axis_index_groups="),
        (lambda: functional.group_moments(X, (1,), 3), "groups=3"),
        (lambda: functional.group_moments(X, (1,), 2, channel_axis=1), "groups=2"),
        (lambda: functional.normalize(X, None, jnp.ones(8), epsilon=0.1), r"variance=float32\[8\]"),
        (lambda: functional.normalize(X, None, BESIDE, epsilon=-0.1), "epsilon=-0.1"),
        (lambda: functional.swish(X + 0j, BESIDE), "x=complex64"),
    ],
)
def test_shapes_axes_and_dtypes_go_by_the_input(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_arrays_of_numpy_are_taken_as_those_of_jax():
    """In double precision they were summed in a dtype that JAX does not compute in by default."""
    ours = functional.moments(np.asarray(X, np.float64), (0, 1), mask=np.ones(X.shape, bool))
    assert ours.variance.dtype == jnp.float32
    np.testing.assert_allclose(ours.variance, MOMENTS.variance, rtol=1e-5)


def test_numbers_may_be_traced():
    traced = jax.jit(lambda e: functional.normalize(X, BESIDE, BESIDE, epsilon=e))(1e-5)
    np.testing.assert_allclose(
        traced, functional.normalize(X, BESIDE, BESIDE, epsilon=1e-5), rtol=1e-6
    )
