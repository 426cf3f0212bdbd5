"""What the outputs of normalization layers look like, which the rest of the network is given."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .reports import Report

PERCENTILES = (15, 50, 85)
# Examples among which ranks and correlations are found, whose cost grows with the cube.
MOST_EXAMPLES = 128
# Where a sigmoid is within 0.05 of its ends, as a hyperbolic tangent is within 0.1 at half of it.
SATURATED = math.log(19)


def of_report(report: Report) -> dict[str, Float[Array, ""]]:
    r"""Returns by name what one layer's call looks like.

    Of the outputs: `mean`, `deviation`, `percentile_15`, `percentile_50`, `percentile_85`, all over
    all values; `dead`, the share of the features none of whose values is above 0, so that a ReLU
    after the layer passes nothing; `saturated`, the share of the values where a sigmoid is within
    0.05 of 0 or 1; `effective_rank` and `correlation`, as the functions of these names have it.

    Of a layer with running statistics, how far they are from those of the inputs, as means over the
    features: `gap_of_mean`, :math:`|\mu_B - \mu| / \sigma`, and `gap_of_deviation`,
    :math:`|\log(\sigma_B / \sigma)|`. Both are 0 where evaluation does as training.

    Sources: Ioffe and Szegedy, 2015, "Batch Normalization", figure 1 (percentiles).
    """
    outputs = report.outputs.astype(jnp.float32)
    rows = outputs.reshape(-1, outputs.shape[-1])
    examples = outputs.reshape(len(outputs), -1)[:MOST_EXAMPLES]
    told = {
        "mean": jnp.mean(outputs),
        "deviation": jnp.std(outputs),
        **{f"percentile_{it}": jnp.percentile(outputs, it) for it in PERCENTILES},
        "dead": jnp.mean(jnp.max(rows, 0) <= 0),
        "saturated": jnp.mean(jnp.abs(outputs) > SATURATED),
        "effective_rank": effective_rank(examples),
        "correlation": correlation(examples),
    }
    if report.running.keys() >= {"mean", "var"}:
        inputs = report.inputs.astype(jnp.float32)
        mean, deviation = (report.running["mean"], jnp.sqrt(report.running["var"]))
        if mean.shape == inputs.shape[-1:]:
            given = inputs.reshape(-1, inputs.shape[-1])
            told["gap_of_mean"] = jnp.mean(jnp.abs(jnp.mean(given, 0) - mean) / deviation)
            told["gap_of_deviation"] = jnp.mean(jnp.abs(jnp.log(jnp.std(given, 0) / deviation)))
    return told


def effective_rank(examples: Float[Array, "examples features"]) -> Float[Array, ""]:
    r"""Returns how many directions the examples take up, from 1 to their number.

    .. math:: \exp\left(-\sum_i p_i \log p_i\right), \qquad p_i = s_i / \sum_j s_j

    with the singular values :math:`s_i` of the matrix of examples; 0 of nothing but zeros.

    Source: Roy and Vetterli, 2007, "The effective rank", definition 1.
    """
    largest = jnp.max(jnp.abs(examples))
    scaled = examples / jnp.where(largest > 0, largest, 1)
    squares = jnp.linalg.eigvalsh(scaled @ scaled.T)
    # What rounding leaves of singular values that are 0.
    least = len(examples) * jnp.finfo(squares.dtype).eps * jnp.max(squares)
    values = jnp.sqrt(jnp.where(squares > least, squares, 0))
    shares = values / jnp.where(largest > 0, jnp.sum(values), 1)
    entropy = -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1)))
    return jnp.where(largest > 0, jnp.exp(entropy), 0)


def correlation(examples: Float[Array, "examples features"]) -> Float[Array, ""]:
    """Returns the mean cosine of the angle between two different examples; 0 of a single one.

    An example that is 0 has no direction, and counts as orthogonal to all.

    Source: Daneshmand et al., 2021, "Batch Normalization Orthogonalizes Representations in Deep
    Random Networks", section 3, whose gap is of the same Gram matrix.
    """
    sizes = jnp.linalg.norm(examples, axis=1, keepdims=True)
    directions = examples / jnp.where(sizes > 0, sizes, 1)
    count = len(examples)
    # All pairs but those of an example with itself.
    pairs = jnp.sum(jnp.square(jnp.sum(directions, 0))) - jnp.sum(jnp.square(directions))
    return pairs / max(1, count * (count - 1))


def of_reports(reports: dict[str, Report]) -> dict[str, dict[str, Array]]:
    """Returns what `of_report` says, quantity -> layer -> value."""
    return turned({name: of_report(report) for name, report in reports.items()})


def turned(by_layer: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """Returns quantity -> layer -> value for layer -> quantity -> value."""
    names = dict.fromkeys(name for told in by_layer.values() for name in told)
    return {
        name: {layer: told[name] for layer, told in by_layer.items() if name in told}
        for name in names
    }
