"""Batch norm with noise after it whose distribution jumps at every step."""

import jax
from flax import linen as nn

import normlab


@normlab.register(
    "noisy_batch_norm",
    statistics="batch",
    source="Santurkar et al., 2018",
    cost="batch",
)
class NoisyBatchNorm(nn.Module):
    """Batch norm, then noise in training: s x + m with m and s drawn by example and feature.

    By step and feature a mean in [-0.5, 0.5] and a deviation in [1, 1.25] are drawn, as in
    Santurkar et al., appendix A; by example m within 0.1 of that mean, and s normal about that
    deviation with a deviation of 0.1.
    """

    use_running_average: bool | None = None
    momentum: float = 0.99
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, use_running_average=None):
        evaluates = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        norm = normlab.BatchNorm(momentum=self.momentum, epsilon=self.epsilon)
        x = norm(x, use_running_average=evaluates)
        if evaluates or self.is_initializing():
            return x
        keys = jax.random.split(self.make_rng("dropout"), 4)
        mean = jax.random.uniform(keys[0], x.shape[1:], x.dtype, -0.5, 0.5)
        deviation = jax.random.uniform(keys[1], x.shape[1:], x.dtype, 1, 1.25)
        shift = mean + jax.random.uniform(keys[2], x.shape, x.dtype, -0.1, 0.1)
        return (deviation + 0.1 * jax.random.normal(keys[3], x.shape, x.dtype)) * x + shift
