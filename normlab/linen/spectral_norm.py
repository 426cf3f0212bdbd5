"""Spectral normalization."""

from collections.abc import Iterable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import DTypeLike
from jaxtyping import Array

from ..functional import converged_direction, spec_of, spectral_normalize, spread_as
from .fields import CheckedModule
from .shared import Axes, check_flag, check_statistics, in_statistics_dtype
from .weight_wrapper import call_with_weights, split_axes


class SpectralNorm(CheckedModule):
    r"""Calls a layer with weights divided by their largest singular value.

    .. math:: \hat{W} = W / \sigma(W)

    The singular value is estimated by power iteration from the singular vector that was found
    before; initialization finds that of the weights it draws, so that the first evaluation has
    spectral norm 1. A weight of higher rank is taken as a matrix of its feature axes against all
    others; scalars, vectors and weights without other axes are left as they are, and so is, for
    good, a weight that is zero at initialization, such as the bias of an attention: divided by
    their norm, the first small values that training gives it would be as large as any others. A
    drop-in for `flax.linen.SpectralNorm`::

        layer = normlab.SpectralNorm(nn.Dense(4))
        variables = layer.init(key, x, update_stats=False)
        y, updated = layer.apply(variables, x, update_stats=True, mutable=["batch_stats"])

    Three things differ from Flax, where the first evaluation has whatever norm one iteration from
    a random vector leaves. Weights that become zero or not finite leave the state alone; in Flax
    they turn it into zero or NaN, from which it never recovers. And the epsilon weighs against
    weights in units of the largest of them, so that weights of any size are normalized; in Flax
    those below 1e-6 get a spectral norm far above 1.

    Parameters: those of the layer. As in Flax, initialization stores them normalized.

    State, in `batch_stats`: for each weight its path with `/u`, a left-over of the iteration of
    shape (1, outputs), and its path with `/sigma`, a scalar, from 1, which is that of the weights
    as initialization stores them; never below float32. They move when, and only when, the caller
    makes `batch_stats` mutable and sets `update_stats`, initialization excepted.

    Attributes:
        layer_instance: The layer to be called.
        n_steps: Number of power iterations in a call, at least 1.
        epsilon: Added to squared lengths before they are divided by.
        dtype: Dtype of the weights that the layer sees; by default that of its parameters and the
            state together.
        param_dtype: Dtype of the state, at least float32.
        error_on_non_matrix: Whether to refuse weights of a rank above 2.
        collection_name: Collection of the state.
        variable_filter: The parameters to be normalized: those in whose path one of these strings
            occurs; None, as in Flax, for all.
        feature_axes: Axes of a weight along which its outputs lie: -1 for Dense and Conv, (-2, -1)
            for a DenseGeneral with two axes of features, -2 for a ConvTranspose with
            `transpose_kernel`.

    Source: Miyato, Kataoka, Koyama and Yoshida, 2018, "Spectral Normalization for Generative
    Adversarial Networks", algorithm 1.
    """

    layer_instance: nn.Module
    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = "batch_stats"
    variable_filter: Iterable[str] | None = field(default=None, kw_only=True)
    feature_axes: Axes = field(default=-1, kw_only=True)

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        """Calls the layer.

        Args:
            *args: Given to the layer.
            update_stats: Whether the state takes in what this call estimates: true in training.
            **kwargs: Given to the layer.

        Returns:
            What the layer returns.

        Raises:
            ValueError: If a weight is no matrix and `error_on_non_matrix` is set, or the filter
                matches no parameter of the layer.
        """
        check_flag(self, "update_stats", update_stats)
        update = bool(
            update_stats
            and self.is_mutable_collection(self.collection_name)
            and not self.is_initializing()
        )

        def normalize(path: str, weight: Array) -> Array:
            return self._normalize(path, weight, update)

        return call_with_weights(self, normalize, *args, stores_normalized=True, **kwargs)

    def _normalize(self, path: str, weight: Array, update: bool) -> Array:
        named = 1 if isinstance(self.feature_axes, int) else len(self.feature_axes)
        if weight.ndim <= max(named, 1):
            return weight
        outputs, inputs = split_axes(self, weight.ndim)
        if weight.ndim > 2 and self.error_on_non_matrix:
            raise ValueError(
                f"SpectralNorm: Input is {weight.ndim}D but error_on_non_matrix is True: {path} of "
                f"shape {weight.shape} is no matrix. Without error_on_non_matrix it is taken as "
                "one, its feature axes against all others."
            )
        # A whole matrix is iterated on, wherever its parts lie on an explicit mesh.
        x = spread_as(in_statistics_dtype(weight, None, force_float32=True), (None,) * weight.ndim)
        last = tuple(range(-len(outputs), 0))
        turned = jnp.moveaxis(x, outputs, last)
        x = turned.reshape(*turned.shape[: len(inputs)], -1)
        dtype = jnp.promote_types(self.param_dtype, x.dtype)

        def initial_direction() -> Array:
            u = jax.random.normal(self.make_rng("params"), (1, x.shape[-1]), dtype)
            return converged_direction(x, u, epsilon=self.epsilon).astype(dtype)

        u = self.variable(self.collection_name, f"{path}/u", initial_direction)
        real = jnp.finfo(dtype).dtype
        sigma = self.variable(self.collection_name, f"{path}/sigma", jnp.ones, (), real)
        check_statistics(self, f"{path}/u", u.value, (1, x.shape[-1]))
        check_statistics(self, f"{path}/sigma", sigma.value, (), negative=False)
        direction = jnp.asarray(u.value)
        y, new_u, new_sigma = spectral_normalize(
            x,
            spread_as(direction, (None, None)),
            jnp.asarray(sigma.value),
            steps=self.n_steps,
            epsilon=self.epsilon,
        )
        if update:
            u.value = spread_as(new_u.astype(direction.dtype), spec_of(direction))
            sigma.value = new_sigma.astype(sigma.value.dtype)
        y = spread_as(jnp.moveaxis(y.reshape(turned.shape), last, outputs), spec_of(weight))
        return y.astype(canonicalize_dtype(weight, u.value, sigma.value, dtype=self.dtype))
