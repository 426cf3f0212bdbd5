"""Weight norm and spectral norm beside those of Flax and PyTorch: several steps of training."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_training import LEARNING_RATE, assert_trees_close, descent, random_array

import normlab as nl

KERNEL = "layer_instance/kernel"


# Beside Flax.


class Model(nn.Module):
    wrap: object

    @nn.compact
    def __call__(self, x, **mode):
        x = nn.relu(self.wrap(nn.Conv(4, (2,)))(x, **mode))
        return self.wrap(nn.Dense(5))(x, **mode)


CASES = {
    "WeightNorm": {},
    "WeightNorm without scale": {"use_scale": False},
    "WeightNorm of all parameters, each as a whole": {
        "variable_filter": None,
        "feature_axes": None,
        "epsilon": 0.1,
        "scale_init": nn.initializers.constant(2.0),
    },
    "SpectralNorm": {},
    "SpectralNorm of two steps": {"n_steps": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_flax(case):
    """From the initialization on, one's variables are the other's, and fit into it.

    That of the spectral norm converges here, so only what follows is compared.
    """
    name = case.split()[0]
    ours, theirs = (Model(partial(getattr(library, name), **CASES[case])) for library in (nl, nn))
    mode = {"update_stats": True} if name == "SpectralNorm" else {}
    batches = random_array((5, 2, 3, 3))

    def initialized(model):
        return jax.jit(partial(model.init, **mode))(jax.random.key(0), batches[0])

    variables, expected = initialized(ours), initialized(theirs)
    if name == "SpectralNorm":
        assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)
        variables = expected
    assert_trees_close(variables, expected)
    one, other = (
        jax.jit(descent(partial(model.apply, **mode), lambda y: jnp.mean(jnp.square(y - 1))))
        for model in (ours, theirs)
    )
    for x in batches:
        # Each goes on with what the other has.
        (expected, y), (variables, expected_y) = one(variables, x), other(expected, x)
        np.testing.assert_allclose(y, expected_y, rtol=1e-4, atol=1e-5)
        assert_trees_close(variables, expected)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_fields_are_those_of_flax(name):
    def table(wrapper):
        return [
            (
                field.name,
                field.default
                if field.default_factory is dataclasses.MISSING
                else field.default_factory(),
            )
            for field in dataclasses.fields(wrapper)
            if not field.kw_only
        ]

    assert table(getattr(nl, name)) == table(getattr(nn, name))


# Beside PyTorch.


def trained_torch(torch, module, batches):
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    for x in batches:
        y = module(torch.tensor(x))
        optimizer.zero_grad()
        torch.tanh(y).sum().backward()
        optimizer.step()
        yield y.detach().numpy()


def transposed(tensor):
    return tensor.detach().numpy().T.copy()


@pytest.mark.parity
def test_weight_norm_trains_as_that_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3))
    scale, weight = (getattr(module.parametrizations.weight, f"original{i}") for i in (0, 1))
    own = {"kernel": transposed(weight), "bias": transposed(module.bias)}
    params = {"layer_instance": own, f"{KERNEL}/scale": transposed(scale)[0]}
    variables, batches = {"params": params}, random_array((4, 5, 4))
    step = jax.jit(descent(nl.WeightNorm(nn.Dense(3)).apply))
    for x, expected in zip(batches, trained_torch(torch, module, batches), strict=True):
        variables, y = step(variables, x)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        params = variables["params"]
        np.testing.assert_allclose(params[f"{KERNEL}/scale"], transposed(scale)[0], atol=1e-5)
        kernel = params["layer_instance"]["kernel"]
        np.testing.assert_allclose(kernel, transposed(weight), atol=1e-5)


@pytest.mark.parity
def test_spectral_norm_trains_as_that_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    # PyTorch starts from the vector of the other side, hence dim=1.
    module = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 3), dim=1)
    parametrization = module.parametrizations.weight
    own = {"kernel": transposed(parametrization.original), "bias": transposed(module.bias)}
    state = {
        f"{KERNEL}/u": transposed(parametrization[0]._v)[None],
        f"{KERNEL}/sigma": np.float32(1),
    }
    variables = {"params": {"layer_instance": own}, "batch_stats": state}
    batches = random_array((4, 5, 4))
    step = jax.jit(descent(partial(nl.SpectralNorm(nn.Dense(3)).apply, update_stats=True)))
    for x, expected in zip(batches, trained_torch(torch, module, batches), strict=True):
        variables, y = step(variables, x)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        u = variables["batch_stats"][f"{KERNEL}/u"]
        np.testing.assert_allclose(u[0], parametrization[0]._v, atol=1e-5)
        kernel = variables["params"]["layer_instance"]["kernel"]
        np.testing.assert_allclose(kernel, transposed(parametrization.original), atol=1e-5)
