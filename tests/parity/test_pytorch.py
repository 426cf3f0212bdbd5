"""The conventions of PyTorch beside PyTorch. The channels are at axis 1 there."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity.training import (
    LEARNING_RATE,
    assert_close,
    assert_same_training,
    ours,
    random_array,
    spectrally_normalized,
    start,
    weight_normalized,
    with_convention,
)

import normlab as nl

torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `parity`")

pytestmark = pytest.mark.parity


class Theirs:
    """A module trained on batches that have the channels last, or as they are there."""

    def __init__(self, module, learned, channels_last):
        self.module, self.learned, self.channels_last = module, learned, channels_last

    def _there(self, x):
        return torch.from_numpy(np.moveaxis(x, -1, 1).copy() if self.channels_last else x)

    def _back(self, x):
        x = x.detach().numpy()
        return np.moveaxis(x, 1, -1) if self.channels_last else x

    def step(self, x, weights):
        x = self._there(x).requires_grad_()
        y = self.module(x)
        self.module.zero_grad()
        (self._there(weights) * y).sum().backward()
        with torch.no_grad():
            for parameter in self.learned.values():
                parameter -= LEARNING_RATE * parameter.grad
        results = {"y": self._back(y), "to x": self._back(x.grad)}
        results |= self.parameters()
        if getattr(self.module, "running_mean", None) is not None:
            results["mean"] = self.module.running_mean.numpy()
            results["var"] = self.module.running_var.numpy()
        return results

    def parameters(self):
        return {name: parameter.detach().numpy() for name, parameter in self.learned.items()}

    def evaluate(self, x):
        self.module.eval()
        with torch.no_grad():
            return self._back(self.module(self._there(x)))


def their_layer(module, channels_last):
    learned = {"scale": getattr(module, "weight", None), "bias": getattr(module, "bias", None)}
    learned = {name: parameter for name, parameter in learned.items() if parameter is not None}
    for name, parameter in learned.items():
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(start([name], tuple(parameter.shape))[name])))
    return Theirs(module, learned, channels_last)


AFFINE = {"use_scale": True, "use_bias": True}

# Registered name, their module, changes to the convention, whether channels are last here.
CASES = {
    "batch": ("batch_norm", lambda nn: nn.BatchNorm2d(4), {}, True),
    "batch at axis 1": ("batch_norm", lambda nn: nn.BatchNorm2d(3), {"axis": 1}, False),
    "batch, slow": (
        "batch_norm",
        lambda nn: nn.BatchNorm2d(4, momentum=0.01, eps=1e-3),
        {"momentum": 0.99, "epsilon": 1e-3},
        True,
    ),
    "batch, cumulative": (
        "batch_norm",
        lambda nn: nn.BatchNorm2d(4, momentum=None),
        {"momentum": None},
        True,
    ),
    "batch, no affine": (
        "batch_norm",
        lambda nn: nn.BatchNorm2d(4, affine=False),
        {"use_scale": False, "use_bias": False},
        True,
    ),
    "layer": ("layer_norm", lambda nn: nn.LayerNorm(4), {}, False),
    "layer over three axes": (
        "layer_norm",
        lambda nn: nn.LayerNorm((3, 5, 4)),
        {"reduction_axes": (1, 2, 3), "feature_axes": (1, 2, 3)},
        False,
    ),
    "group": ("group_norm", lambda nn: nn.GroupNorm(2, 4), {"num_groups": 2}, True),
    "group, channels first": (
        "group_norm",
        lambda nn: nn.GroupNorm(1, 3),
        {"num_groups": 1, "feature_axes": 1},
        False,
    ),
    "instance": ("instance_norm", lambda nn: nn.InstanceNorm2d(4), {}, True),
    "instance at axis 1, affine": (
        "instance_norm",
        lambda nn: nn.InstanceNorm2d(3, affine=True),
        AFFINE | {"feature_axes": 1},
        False,
    ),
    "root mean square": ("rms_norm", lambda nn: nn.RMSNorm(4), {}, False),
}


@pytest.mark.parametrize(("name", "make", "changes", "channels_last"), CASES.values(), ids=CASES)
def test_training(name, make, changes, channels_last):
    layer, batches = with_convention("pytorch", name, changes)
    theirs = their_layer(make(torch.nn), channels_last)
    assert_same_training(ours(layer, batches[0]), theirs, batches)


def test_local_response_norm():
    """Of values large enough for alpha to be seen."""
    batches = 100 * random_array((4, 6, 3, 5, 4))
    layer = nl.LocalResponseNorm(3, **nl.convention("pytorch", "local_response_norm"))
    theirs = their_layer(torch.nn.LocalResponseNorm(3), True)
    assert_same_training(ours(layer, batches[0]), theirs, batches)
    first = layer.clone(feature_axes=1)
    theirs = their_layer(torch.nn.LocalResponseNorm(3), False)
    assert_same_training(ours(first, batches[0]), theirs, batches)


def test_a_local_response_of_even_size_is_that_of_the_formula_and_not_of_the_code_of_pytorch():
    """Its documentation sums from c - n/2 to c + n/2, its code to c + n/2 - 1."""
    x = random_array((2, 5, 8))

    def formula(above):
        windows = [x[..., max(0, c - 2) : c + above + 1] for c in range(8)]
        energy = np.stack([(window**2).sum(-1) for window in windows], -1)
        return x / (1 + 2.0 / 4 * energy) ** 0.75

    theirs = their_layer(torch.nn.LocalResponseNorm(4, alpha=2.0), True).evaluate(x)
    fields = nl.convention("pytorch", "local_response_norm") | {"size": 4, "alpha": 2.0}
    assert_close(theirs, formula(above=1))
    assert_close(nl.LocalResponseNorm(**fields).apply({}, x), formula(above=2))


class WeightNormalized(Theirs):
    """A linear layer, whose weights lie the other way round there."""

    def __init__(self, linear):
        module = torch.nn.utils.parametrizations.weight_norm(linear)
        length, direction = module.parametrizations.weight.parameters()
        learned = {"kernel": direction, "scale": length, "bias": module.bias}
        super().__init__(module, learned, False)

    def parameters(self):
        return {name: value.T.squeeze() for name, value in super().parameters().items()}


def test_weight_norm():
    torch.manual_seed(0)
    theirs = WeightNormalized(torch.nn.Linear(4, 4))
    params = {name: jnp.array(value) for name, value in theirs.parameters().items()}
    layer, batches = weight_normalized("pytorch", params), random_array((4, 6, 4))
    assert_same_training(layer, theirs, batches)


def test_spectral_norm_once_it_has_settled():
    torch.manual_seed(0)
    module = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4))
    kernel = module.parametrizations.weight.original.detach().numpy().T
    x, bias = random_array((6, 4)), module.bias.detach().numpy()
    for _ in range(50):
        theirs = module(torch.from_numpy(x))
    assert_close(spectrally_normalized("pytorch", kernel, bias, x), theirs.detach().numpy())
