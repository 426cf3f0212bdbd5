"""What cannot be is refused by every layer, by name, before anything below could fail."""

from dataclasses import fields

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normlab as nl
from normlab.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("without_type_checks")

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(4, 3, 32)).astype(np.float32)
LAYERS = [
    variant.layer for variant in VARIANTS.values() if variant.layer.__module__.startswith("normlab")
]
WRAPPERS = [
    nl.WeightNorm,
    nl.WeightStandardization,
    nl.ScaledWeightStandardization,
    nl.SpectralNorm,
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
# None of these is a value of any field but those named beside it.
IMPOSSIBLE = [
    (float("nan"), ()),
    (-1, ("axis", "reduction_axes", "feature_axes", "beta", "alpha_init")),
    (-0.5, ("beta", "alpha_init")),
    (10**400, ("axis", "reduction_axes", "feature_axes")),
    (object(), ()),
    (1j, ()),
    ({"a": 1}, ()),
    (jnp.zeros(2), ()),
]
NO_WORDS = ("axis_name", "variable_filter", "collection_name")
NOT_A_FIELD = ("parent", "name", "axis_index_groups")


def small(layer, **fields):
    """A layer that takes the few examples there are."""
    return layer(**fields | ({"ghost_batch_size": 2} if layer is nl.GhostBatchNorm else {}))


def settable(layer):
    return [f.name for f in fields(layer) if f.name not in NOT_A_FIELD]


def refused(name, part, call):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    told = str(raised.value)
    assert told.startswith(f"{name}: ")
    assert part in told
    assert "expected" in told or "give" in told.lower()


@pytest.mark.parametrize("layer", LAYERS + WRAPPERS, ids=lambda layer: layer.__name__)
def test_fields_that_cannot_be_are_refused(layer):
    """A None, a word or a NaN ended in an AttributeError from below, or in outputs of NaN."""
    needed = {"layer_instance": nn.Dense(8)} if layer in WRAPPERS else {}
    for field in settable(layer):
        for value, taken_by in [*IMPOSSIBLE, ("no", NO_WORDS)]:
            if field in taken_by:
                continue
            if field == "variable_filter" and isinstance(value, dict):
                continue  # a set of words, for all that is asked of it
            refused(
                layer.__name__,
                field,
                lambda field=field, value=value: layer(**needed | {field: value}),
            )


@pytest.mark.parametrize(
    "layer",
    [layer for layer in LAYERS if "epsilon" in settable(layer)],
    ids=lambda layer: layer.__name__,
)
def test_fields_of_the_nnx_layers_are_checked_in_construction_and_when_set(layer):
    ours = getattr(nl.nnx, layer.__name__)
    for value in (None, "x", -1.0, float("nan"), float("inf")):
        refused(layer.__name__, "epsilon", lambda v=value: ours(32, epsilon=v, rngs=nnx.Rngs(0)))
    made = ours(32, rngs=nnx.Rngs(0))
    made.epsilon = -1.0
    refused(layer.__name__, "epsilon", lambda: made(X))
    for size in (None, 0, -3, True, 2.5, "x", 10**400, 10**5000, (2**31 - 1, 2**31 - 1)):
        refused(layer.__name__, "num_features", lambda size=size: ours(size, rngs=nnx.Rngs(0)))


NUMBERS = [
    (layer, field.name)
    for layer in LAYERS
    for field in fields(layer)
    if isinstance(field.default, float) or field.name == "momentum"
]


@pytest.mark.parametrize(("layer", "field"), NUMBERS, ids=lambda it: getattr(it, "__name__", it))
def test_a_traced_number_is_computed_with_or_refused_by_the_layer(layer, field):
    """What decides on a shape or a branch ended in a TracerBoolConversionError."""

    def traced(value):
        return small(layer, **{field: value}).init_with_output(KEY, X, use_running_average=False)

    value = layer.__dataclass_fields__[field].default or 0.9
    if field in ("fraction", "beta", "r_max", "d_max", "start_steps", "r_steps", "d_steps"):
        refused(layer.__name__, field, lambda: jax.eval_shape(traced, value))
    else:
        jax.eval_shape(traced, value)
    small(layer, **{field: jnp.asarray(value)}).init(KEY, X, use_running_average=False)


def test_what_only_nnx_is_given_is_checked():
    """Of promote_dtype=3 the call said that an int is not callable."""
    for promote in (3, "float16", jnp.float16):
        refused(
            "LayerNorm",
            "promote_dtype",
            lambda p=promote: nl.nnx.LayerNorm(32, promote_dtype=p, rngs=nnx.Rngs(0)),
        )
    for metadata in (3, ["sharding"], {1: 2}, {"value": 3}):
        refused(
            "LayerNorm",
            "scale_metadata",
            lambda m=metadata: nl.nnx.LayerNorm(32, scale_metadata=m, rngs=nnx.Rngs(0)),
        )
    for wrong in (
        {"num_features": 0},
        {"num_features": None},
        {"num_features": (4, 4)},
        {"condition_features": 2.5},
        {"gate": "yes"},
        {"dtype": int},
        {"kernel_init": 3},
        {"rngs": 0},
    ):
        given = {"num_features": 4, "condition_features": 3, "rngs": nnx.Rngs(0)} | wrong
        refused("ConditionalNorm", next(iter(wrong)), lambda g=given: nl.nnx.ConditionalNorm(**g))


@every_layer
def test_arguments_that_cannot_be_are_refused(layer):
    """A mask of zeros and minus infinity, as attention has, would count what it masks."""
    name, made = layer.__name__, small(layer)
    variables = made.init(KEY, X, use_running_average=False)

    def call(x=X, **arguments):
        arguments = {"use_running_average": False} | arguments
        return made.apply(variables, x, mutable=["batch_stats"], **arguments)

    for x in (None, "abc", [[1, 2], [3]], np.array([object()]), jax.random.split(KEY, 4)):
        refused(name, "x", lambda x=x: call(x))
    refused(name, "float8_e4m3fn", lambda: call(jnp.ones(X.shape, jnp.float8_e4m3fn)))
    for mask in (np.ones(X.shape), np.ones(X.shape, int), np.where(X > 0, 0, -np.inf), "x"):
        refused(name, "mask", lambda mask=mask: call(mask=mask))
    for argument in ("scale", "bias"):
        for value in ("x", object(), jnp.ones(32, jnp.float8_e4m3fn), np.ones(31)):
            refused(name, argument, lambda a=argument, value=value: call(**{a: value}))
    for value in ("yes", 2, 0.5, np.ones(X.shape, bool)):
        refused(name, "use_running_average", lambda v=value: call(use_running_average=v))
    with pytest.raises(ValueError, match="static_argnames"):
        jax.jit(lambda flag: call(use_running_average=flag))(True)


WITH_STATISTICS = [layer for layer in LAYERS if issubclass(layer, nl.BatchNorm)]


@pytest.mark.parametrize("layer", WITH_STATISTICS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("average", [True, False])
def test_running_statistics_that_cannot_be_are_refused(layer, average):
    """A checkpoint of half precision, of another layer, or of a run that diverged."""
    made = small(layer, use_running_average=average)
    variables = made.init(KEY, X)
    state = variables["batch_stats"]

    def call(**wrong):
        changed = {**variables, "batch_stats": {**state, **wrong}}
        return made.apply(changed, X, mutable=[] if average else ["batch_stats"])

    wrong = [
        ("var", -state["var"], "holds -"),
        ("var", state["var"].at[3].set(jnp.nan), "holds nan"),
        ("var", state["var"].astype(jnp.float16), "float16"),
        ("var", state["var"].astype(int), "int32"),
        ("var", state["var"][:1], r"shape \(1,\)"),
        ("var", state["var"][None], r"shape \(1, 32\)"),
    ]
    if "mean" in state:
        wrong += [("mean", state["mean"] + jnp.inf, "holds inf"), ("mean", 0.0, r"shape \(\)")]
    if average and issubclass(layer, nl.BatchRenorm):
        wrong.append(("count", jnp.zeros(2), r"shape \(2,\)"))
    if not average and not layer._corrects_batch:
        call()
    for name, value, told in wrong:
        with pytest.raises(ValueError, match=rf"{layer.__name__}: .*statistic {name} .*{told}"):
            call(**{name: value})


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
def test_what_is_no_layer_cannot_be_wrapped(wrapper):
    for layer in (nn.Dense, None, "Dense", lambda x: x, nnx.Linear(2, 3, rngs=nnx.Rngs(0))):
        refused(wrapper.__name__, "layer_instance", lambda layer=layer: wrapper(layer))
    ours = getattr(nl.nnx, wrapper.__name__)
    for layer in (nn.Dense(3), None, "Linear"):
        refused(
            wrapper.__name__, "layer_instance", lambda layer=layer: ours(layer, rngs=nnx.Rngs(0))
        )


def test_whether_spectral_norm_updates_is_true_or_false():
    """The words "no" and a NaN updated the state."""
    linen = nl.SpectralNorm(nn.Dense(8))
    variables = linen.init(KEY, X, update_stats=False)

    def wrapped(**told):
        rngs = nnx.Rngs(0)
        return nl.nnx.SpectralNorm(nnx.Linear(32, 8, rngs=rngs), **told, rngs=rngs)

    for value in ("no", 2, float("nan"), np.ones(3)):
        for call in (
            lambda v: linen.apply(variables, X, update_stats=v, mutable=["batch_stats"]),
            lambda v: wrapped()(X, update_stats=v),
            lambda v: wrapped(update_stats=v),
        ):
            refused("SpectralNorm", "update_stats", lambda call=call, value=value: call(value))
    made = wrapped()
    made.use_running_average = "no"
    refused("SpectralNorm", "use_running_average", lambda: made(X))


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
def test_weights_and_keys_that_cannot_be_are_refused(wrapper):
    """Of weights of 8 bits JAX said that they have no path of promotion, of rngs=0 its type."""
    told = {"update_stats": False} if wrapper is nl.SpectralNorm else {}
    made = wrapper(nn.Dense(8))
    variables = made.init(KEY, X, **told)
    variables["params"]["layer_instance"]["kernel"] = jnp.ones((32, 8), jnp.float8_e4m3fn)
    refused(wrapper.__name__, "float8_e4m3fn", lambda: made.apply(variables, X, **told))
    linear = nnx.Linear(32, 8, rngs=nnx.Rngs(0))
    refused(wrapper.__name__, "rngs", lambda: getattr(nl.nnx, wrapper.__name__)(linear, rngs=0))


def test_variables_of_nnx_layers_that_cannot_be_are_refused():
    """Flax told of a scope and an initializer, and not of which layer."""

    def call(name, value, replaces):
        made = nl.nnx.BatchNorm(32, rngs=nnx.Rngs(0))
        if replaces:
            setattr(made, name, value)
        else:
            getattr(made, name).set_value(value)
        return made(X, use_running_average=True)

    for name in ("scale", "bias", "mean", "var"):
        values = [(jnp.ones(1), False), (jnp.ones((32, 32)), False), ("x", False)]
        values += [(jnp.ones(32), True), (None, True)]
        for value, replaces in values:
            refused("BatchNorm", name, lambda n=name, v=value, r=replaces: call(n, v, r))
    refused(
        "LayerNorm",
        "use_running_average",
        lambda: nl.nnx.LayerNorm(32, use_running_average="no", rngs=nnx.Rngs(0)),
    )


def test_conditions_and_norms_that_cannot_be_are_refused():
    made = nl.nnx.ConditionalNorm(32, 3, rngs=nnx.Rngs(0))
    for condition in (np.ones((4, 2)), 1.0, "x", None):
        refused("ConditionalNorm", "condition", lambda c=condition: made(X, c))
    made.modulation.kernel.set_value(jnp.ones((3, 3)))
    refused("ConditionalNorm", "kernel", lambda: made(X, np.ones((4, 3))))
    for norm in (nn.Dense, nl.WeightNorm, lambda **_: 3, int):
        refused(
            "ConditionalNorm", "norm", lambda n=norm: nl.ConditionalNorm(n).init(KEY, X, X[:, 0])
        )


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
def test_a_layer_is_no_filter_and_no_function_for_promotion(wrapper):
    """Both can be called, and Flax said that compact methods cannot be, on unbound modules."""
    rngs = nnx.Rngs(0)
    for field in ("variable_filter", "promote_dtype"):
        layers = [nn.Dense(3), nnx.Linear(2, 3, rngs=rngs)]
        for layer in layers if field == "variable_filter" else layers[:1]:
            refused(
                wrapper.__name__,
                field,
                lambda field=field, layer=layer: getattr(nl.nnx, wrapper.__name__)(
                    nnx.Linear(32, 8, rngs=rngs), **{field: layer}, rngs=rngs
                ),
            )


def test_a_named_axis_that_is_not_there_is_named():
    """JAX says `unbound axis name`, and not whose it is."""
    for layer in (nl.LayerNorm(axis_name="i"), nl.GroupNorm(axis_name="i")):
        refused(type(layer).__name__, "axis_name='i'", lambda layer=layer: layer.init(KEY, X))
    made = nl.BatchNorm(False, axis_name="i")
    variables = made.init(KEY, X)
    refused("BatchNorm", "axis_name='i'", lambda: made.apply(variables, X))
    refused("BatchNorm", "axis_name", lambda: nl.BatchNorm(axis_index_groups=[[0], [1]]))


# Calls drawn at random, right and wrong: of what is refused, the layer says so itself.

DRAWN = {
    "fields": [
        *(None, True, False, 0, 1, -1, 2, 3, 1.5, -0.5, float("inf"), float("nan"), 10**400, 1j),
        *("x", "", b"x", [], [1], (), (0,), (1, 2), (0, 0), (-9,), {}, {"a": 1}, object(), ...),
        *(int, jnp.float32, jnp.int8, "float16", "bfloat16", np.float32(0.1), np.int64(2)),
        *(np.ones(2), jnp.zeros(()), jnp.ones(3, bool), nn.Dense, nn.Dense(3), range(2), slice(1)),
    ],
    "x": [
        *(X[0], X[:, 0], X[0, 0], X[0, 0, 0], X[:0], X[:, :, :0], X.astype(int), X > 0, X + 0j),
        *(X.astype(np.float16), X.astype(np.float64), X * np.nan, X.tolist(), 1.0, None, "x"),
        *(object(), [[1.0], [2.0, 3.0]], np.array(["a"]), {}, jax.ShapeDtypeStruct((4, 8), "int8")),
        *(jnp.ones((4, 8), jnp.float8_e5m2), jnp.ones((4, 8), jnp.int4), jax.random.key(1)),
    ],
    "mask": [
        *(
            X > 0,
            X[:, :, :1] > 0,
            X[0] > 0,
            True,
            False,
            1,
            "x",
            X,
            np.zeros(X.shape, bool),
            np.ones(5, bool),
        ),
        *(np.ones((1, 1, 1, 1), bool), [True], [[True], [False, True]], object(), {}, jnp.ones(32)),
    ],
    "scale": [
        *(np.ones(32), np.ones(31), X, X[:1], X[:, :1, :1], 1.0, True, "x", [1.0] * 32, object()),
        *(np.ones(32, int), np.ones(32) * 1j, np.ones((2, 32)), {}, np.array(["a"]), ()),
    ],
    "use_running_average": [True, False, None, 0, 1, 2, "x", 0.0, np.True_, X > 0, [], object()],
}
DRAWN["bias"] = DRAWN["scale"]
ARGUMENTS = ("mask", "scale", "bias", "use_running_average")


def drawn_call(layer, in_nnx, generator):
    """A call with fields and arguments of which some are drawn, and their words.

    Linear layers that a wrapper is around refuse their inputs by themselves.
    """

    def draw(kind):
        return DRAWN[kind][generator.integers(len(DRAWN[kind]))]

    wraps = layer in WRAPPERS
    names = [*settable(layer), *(["num_features"] if in_nnx and not wraps else [])]
    if in_nnx:
        names = [name for name in names if name not in ("layer_instance", "collection_name")]
    few = generator.choice(3, p=[0.3, 0.5, 0.2])
    fields = {str(name): draw("fields") for name in generator.choice(names, few, replace=False)}
    x = draw("x") if generator.random() < 0.3 and not wraps else X
    given = {name: draw(name) for name in ARGUMENTS if generator.random() < 0.15}
    arguments = {"use_running_average": False} | given
    if wraps:
        arguments = {"update_stats": True} if layer is nl.SpectralNorm else {}

    def call():
        if not in_nnx:
            inner = {"layer_instance": nn.Dense(8)} if wraps else {}
            made = layer(**inner | fields) if wraps else small(layer, **fields)
            return made.init_with_output(KEY, x, **arguments)[0]
        rngs = nnx.Rngs(0)
        of = getattr(nl.nnx, layer.__name__)
        if wraps:
            return of(nnx.Linear(32, 8, rngs=rngs), **fields, rngs=rngs)(x, **arguments)
        ghosts = {"ghost_batch_size": 2} if layer is nl.GhostBatchNorm else {}
        return of(**{"num_features": 32} | ghosts | fields, rngs=rngs)(x, **arguments)

    words = f"{layer.__name__} in {'NNX' if in_nnx else 'Linen'}, {fields}, {x!r:.60}, {arguments}"
    return call, words


def check_drawn_calls(layer, in_nnx, seed, calls):
    """Makes calls; returns how many were refused. What fails otherwise fails here."""
    generator, refusals = np.random.default_rng(seed), 0
    for _ in range(calls):
        call, words = drawn_call(layer, in_nnx, generator)
        try:
            jax.eval_shape(call)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            own = isinstance(error, ValueError | TypeError) and (
                str(error).startswith(f"{layer.__name__}: ")
            )
            assert own, f"{words} ended in {told[:500]}"
            refusals += 1
    return refusals


@pytest.mark.parametrize("in_nnx", [False, True], ids=["Linen", "NNX"])
@pytest.mark.parametrize("layer", LAYERS + WRAPPERS, ids=lambda layer: layer.__name__)
def test_what_is_refused_of_drawn_calls_is_refused_by_the_layer(layer, in_nnx):
    assert check_drawn_calls(layer, in_nnx, seed=0, calls=12)


@pytest.mark.parametrize(
    ("layer", "seed"),
    [(nl.LayerNorm, 1037), (nl.RMSNorm, 1037), (nl.WeightNorm, 1031)],
    ids=["features beyond any number", "the same, overflowing in JAX", "a layer as a filter"],
)
def test_what_drawn_calls_have_found(layer, seed):
    """Of 2,016 calls of seeds from 1000 on; of 2,016 from 50000 on nothing was found."""
    assert check_drawn_calls(layer, True, seed, calls=1) == 1
