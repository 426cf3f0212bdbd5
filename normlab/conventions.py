"""How other libraries normalize: the fields that make a layer here do what theirs does."""

import math
from collections.abc import Mapping
from typing import Any

from .errors import UserError, nearest

# By library and registered name of the layer: the fields, under a comment that names the layer
# there, the version it was compared with, and where the two still differ. Left out is what the
# caller there has to choose as well (number of groups, size of ghosts, layout of the input).
CONVENTIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "pytorch": {
        # nn.BatchNorm1d, 2d and 3d, 2.13.0. Its momentum is the share of the new statistics, so its
        # 0.1 is 0.9 here. Its momentum=None, the average of all batches, is None here as well.
        "batch_norm": {
            "momentum": 0.9,
            "epsilon": 1e-5,
            "running_variance": "unbiased",
            "debias": False,
        },
        # nn.LayerNorm, 2.13.0. For a normalized_shape of several axes, give them as
        # `reduction_axes` and `feature_axes`.
        "layer_norm": {"epsilon": 1e-5},
        # nn.GroupNorm, 2.13.0. Channels are at axis 1 there, at the last axis here.
        "group_norm": {"epsilon": 1e-5},
        # nn.InstanceNorm1d, 2d and 3d, 2.13.0. It learns scale and bias only with affine=True.
        # Running statistics of instances (track_running_stats=True) have no counterpart here.
        "instance_norm": {"epsilon": 1e-5, "use_scale": False, "use_bias": False},
        # nn.RMSNorm, 2.13.0. Its eps=None is the machine epsilon of float32 for half precision too.
        "rms_norm": {"epsilon": 2.0**-23},
        # nn.LocalResponseNorm, 2.13.0. Alpha is divided by the size, which has no default there. Of
        # an even size n it takes n channels, one more below than above; its documentation, the
        # paper and the layer here take n + 1.
        "local_response_norm": {"k": 1.0, "alpha": 1e-4, "beta": 0.75, "average": True},
        # nn.utils.parametrizations.weight_norm(dim=0), 2.13.0. It has no epsilon, so that weights
        # of zero give NaN. The scale starts at the length of the weights there, at 1 here.
        "weight_norm": {"epsilon": 1e-12, "use_scale": True, "feature_axes": -1},
        # nn.utils.parametrizations.spectral_norm, 2.13.0. It keeps the singular vector of the other
        # side, so that it is half an iteration away (not with dim=1), which is nothing once the
        # iteration has settled.
        "spectral_norm": {"n_steps": 1, "epsilon": 1e-12},
    },
    "keras": {
        # layers.BatchNormalization, 3.15.1. With a mask it adds 1e-7 to the number of values.
        "batch_norm": {
            "momentum": 0.99,
            "epsilon": 1e-3,
            "running_variance": "biased",
            "debias": False,
        },
        # layers.BatchNormalization(renorm=True), 3.15.1. Nothing is clipped unless renorm_clipping
        # says so, and then r has no least value unless rmin is given: here that is 1 / r_max. Its
        # renorm_momentum, for the statistics that correct training, is the one `momentum` here.
        "batch_renorm": {
            "momentum": 0.99,
            "epsilon": 1e-3,
            "running_variance": "biased",
            "debias": False,
            "r_max": math.inf,
            "d_max": math.inf,
            "start_steps": 0,
            "r_steps": 0,
            "d_steps": 0,
        },
        # layers.LayerNormalization, 3.15.1. Its rms_scaling=True divides by the deviation without
        # subtracting the mean, which is no root mean square, as its own warning says.
        "layer_norm": {"epsilon": 1e-3},
        # layers.GroupNormalization, 3.15.1.
        "group_norm": {"epsilon": 1e-3},
        # layers.GroupNormalization(groups=-1), 3.15.1.
        "instance_norm": {"epsilon": 1e-3},
        # layers.RMSNormalization, 3.15.1. layers.SpectralNormalization has no counterpart: it
        # overwrites the weights with the normalized ones.
        "rms_norm": {"epsilon": 1e-6},
    },
    "haiku": {
        # BatchNorm, 0.0.17. Its decay_rate has no default: it is `momentum`. It does not keep the
        # variance, mean(x^2) - mean(x)^2, from falling below zero: far from zero its outputs are
        # NaN and its running variance is negative. Statistics take the dtype of the input there.
        "batch_norm": {"epsilon": 1e-5, "running_variance": "biased", "debias": True},
        # LayerNorm(axis=-1, param_axis=-1), 0.0.17.
        "layer_norm": {"epsilon": 1e-5},
        # GroupNorm, 0.0.17.
        "group_norm": {"epsilon": 1e-5},
        # InstanceNorm, 0.0.17.
        "instance_norm": {"epsilon": 1e-5},
        # RMSNorm(axis=-1), 0.0.17. SpectralNorm has no counterpart: here epsilon is in units of the
        # largest weight, and its 1e-4 is not.
        "rms_norm": {"epsilon": 1e-5},
    },
    "equinox": {
        # nn.BatchNorm(mode="batch"), 0.13.8. It debiases a variance that starts at 1 as if it had
        # started at 0, which leaves momentum^n / (1 - momentum^n) too much after n updates, 99
        # after the first; here it is right from the first. Its documentation calls the variance
        # unbiased; it is biased. Its mode="ema", the default, normalizes a training batch by the
        # running statistics and has no counterpart here.
        "batch_norm": {
            "momentum": 0.99,
            "epsilon": 1e-5,
            "running_variance": "biased",
            "debias": True,
        },
        # nn.LayerNorm, 0.13.8, over all axes of the one example that it is called with.
        "layer_norm": {"epsilon": 1e-5},
        # nn.GroupNorm, 0.13.8. Channels come first there, last here.
        "group_norm": {"epsilon": 1e-5},
        # nn.RMSNorm, 0.13.8. It also learns a bias unless use_bias=False; here one is given at the
        # call.
        "rms_norm": {"epsilon": 1e-5},
        # nn.WeightNorm(axis=0), 0.13.8: as PyTorch's.
        "weight_norm": {"epsilon": 1e-12, "use_scale": True, "feature_axes": -1},
        # nn.SpectralNorm, 0.13.8: as PyTorch's.
        "spectral_norm": {"n_steps": 1, "epsilon": 1e-12},
    },
    # TensorFlow 1 cannot be installed any more. What is compared are its rules, written out.
    "tf1": {
        # layers.batch_normalization, 1.15. The variance is unbiased because the fused kernel is
        # used where it can be, for a single feature axis; with fused=False it is biased.
        "batch_norm": {
            "momentum": 0.99,
            "epsilon": 1e-3,
            "running_variance": "unbiased",
            "debias": False,
        },
        # layers.batch_normalization(virtual_batch_size=...), 1.15, which is never fused. In
        # evaluation it still wants a batch that the virtual one divides; here any will do.
        "ghost_batch_norm": {
            "momentum": 0.99,
            "epsilon": 1e-3,
            "running_variance": "biased",
            "debias": False,
            "grouping": "strided",
            "remainder": "error",
            "running": "average",
        },
        # layers.batch_normalization(renorm=True), 1.15: as Keras. In some earlier versions the
        # statistics that correct training were debiased, so that the first batch was not corrected.
        "batch_renorm": {
            "momentum": 0.99,
            "epsilon": 1e-3,
            "running_variance": "biased",
            "debias": False,
            "r_max": math.inf,
            "d_max": math.inf,
            "start_steps": 0,
            "r_steps": 0,
            "d_steps": 0,
        },
        # contrib.layers.layer_norm(begin_norm_axis=-1, begin_params_axis=-1), 1.15. By default it
        # reduces all axes but the first: name them in `reduction_axes`.
        "layer_norm": {"epsilon": 1e-12},
        # contrib.layers.group_norm, 1.15.
        "group_norm": {"epsilon": 1e-6},
        # contrib.layers.instance_norm, 1.15.
        "instance_norm": {"epsilon": 1e-6},
        # nn.local_response_normalization, 1.15. Its depth_radius of 5 is a size of 11.
        "local_response_norm": {
            "size": 11,
            "k": 1.0,
            "alpha": 1.0,
            "beta": 0.5,
            "average": False,
        },
    },
}


def convention(library: str, layer: str) -> dict[str, Any]:
    """Returns the fields with which a layer here gives the numbers of another library's.

    They are that library's defaults, in the terms of normlab: the momentum as the share kept,
    epsilon, whether the running variance is unbiased, whether running statistics are debiased.
    Usage::

        norm = normlab.BatchNorm(**normlab.convention("pytorch", "batch_norm"))

    and, with what was not left at its default there, such as the average of all batches, which is
    None in PyTorch too::

        fields = normlab.convention("pytorch", "batch_norm") | {"momentum": None}

    The layout of the input is left to the caller: for channels at axis 1, as PyTorch has them, say
    `axis=1`, or `feature_axes=1`, where the layer has such a field.

    Where the other library is wrong, the layer here is right all the same. Far from zero Haiku's
    batch normalization gives NaN and a negative running variance, since nothing keeps
    mean(x^2) - mean(x)^2 from it. Equinox's running variance starts at 1 and is debiased as if it
    had started at 0: it is too large by 99 after one update and by 0.6 after a hundred. PyTorch's
    local response normalization of an even size n takes n channels where its documentation and the
    paper take n + 1. Keras's `rms_scaling` divides by the deviation without subtracting the mean,
    and its masked batch normalization adds 1e-7 to the number of values. TensorFlow 1's virtual
    batches leave the variance between them out of the running variance.

    Args:
        library: "pytorch", "keras" (3), "haiku", "equinox" or "tf1" (1.15).
        layer: The registered name of a layer, as in `normlab list`, or "weight_norm" or
            "spectral_norm".

    Returns:
        A new dictionary of fields.

    Raises:
        ValueError: If the library is not known, or is not known to have the layer.
    """
    if library not in CONVENTIONS:
        raise UserError(
            f"convention: the library {library!r} is not known{nearest(library, CONVENTIONS)}"
        )
    layers = CONVENTIONS[library]
    if layer not in layers:
        raise UserError(
            f"convention: {library} is not known to have the layer {layer!r}"
            f"{nearest(layer, layers)}"
        )
    return dict(layers[layer])
