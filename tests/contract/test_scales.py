"""Every variant over the range of float32 and bfloat16, against its float64 oracle.

Squares of values above 2e19 and below 1e-19 are not in the range. Layers that divide by a
deviation, which is, made zeros of the former, with gradients that were finite and wrong; and with a
negligible epsilon infinities and NaN of the latter.
"""

from dataclasses import replace

import jax
import numpy as np
from contract.cases import (
    Case,
    after_two_steps,
    as_arrays,
    assert_close,
    every_case,
    normal,
    parameters,
    train,
    two_of_three,
    variables,
)

LARGE = (1e19, 1e22, 1e25, 1e30)
SMALL = (1e-30, 1e-25, 1e-20)
# Layers that nothing of a large value is left of, and what they make of it is not a normalization.
SQUASHING = ("dynamic_tanh", "dynamic_erf")


def with_epsilon(case: Case, epsilon: float) -> Case:
    """The same case with another epsilon, if it has one."""
    if not case.has_field("epsilon"):
        return case
    name = "base_epsilon" if case.variant == "filter_response_norm" else "epsilon"
    fields = case.fields if case.oracle_fields is None else case.oracle_fields
    return replace(
        case,
        fields=case.fields | {"epsilon": epsilon},
        oracle_fields={key: it for key, it in fields.items() if key != "epsilon"} | {name: epsilon},
        title=f"{case.title}, epsilon {epsilon}",
    )


def check(case, x, mask=None):
    """Compares output and gradients with the oracle; returns the new statistics."""
    # A bias beside values of 1e-30 is all there is, and beside 1e30 nothing: so it is left out.
    params, replay = parameters(case), after_two_steps(case)
    params = {name: it * (name != "bias") for name, it in params.items()}
    given = variables(case) | {"params": as_arrays(params)}
    y, statistics, (of_params, gradient), _ = train(case, x, mask, given=given)
    expected = replay.normalize(x, mask, **params)
    assert_close(y, expected, 2e-5)

    weights, wide = normal(seed=1).astype(np.float64), x.astype(np.float64)
    largest = np.abs(wide).max()

    def loss(step=0.0, along=0.0, **changed):
        moved = wide + step * largest * along
        y = replay.normalize(moved, mask, constant_of=x, **{**params, **changed})
        return (weights * y).sum()

    if case.variant == "local_response_norm" and largest > 1e24:
        return statistics  # Its derivative is a high power of that, and not in the range.

    # What differences of float64 lose to outputs that are large beside what changes them.
    cancelled = 1e-9 * np.abs(weights * expected).sum()

    def agree(found, along, up, down):
        terms = found.astype(np.float64) * along
        limit = 1e-4 * np.linalg.norm(terms) + cancelled
        np.testing.assert_allclose(terms.sum(), (up - down) / 2e-6, rtol=1e-4, atol=limit)

    for seed in (3, 4):
        along = normal(seed=seed).astype(np.float64)
        agree(gradient * largest, along, loss(1e-6, along), loss(-1e-6, along))
    for name, found in of_params.items():
        if name == "bias":
            continue
        along = normal(found.shape, seed=5).astype(np.float64)
        up, down = (loss(**{name: params[name] + step * along}) for step in (1e-6, -1e-6))
        agree(found, along, up, down)
    return statistics


@every_case
def test_large_inputs_are_normalized_and_leave_running_statistics_alone(case):
    """1e19 to 1e25 were normalized to zeros, as their squares are infinite in float32."""
    for scale in LARGE:
        x = np.float32(scale) * normal()
        for mask in (None, two_of_three()):
            statistics = check(case, x, mask)
            if scale > 1e20:
                before = variables(case).get("batch_stats", {})
                jax.tree.map(np.testing.assert_array_equal, statistics, before)


@every_case
def test_small_inputs_are_normalized_where_epsilon_is_negligible(case):
    """Their squares are 0 in float32, so that they were divided by 0 or by epsilon."""
    for epsilon, scales in ((0.0, SMALL), (1e-30, (1e-15,)), (1e-20, (1e-30, 1e-12))):
        small = with_epsilon(case, epsilon)
        for scale in scales:
            for mask in (None, two_of_three()):
                check(small, np.float32(scale) * normal(), mask)
