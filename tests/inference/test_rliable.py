"""Aggregates, profiles and probability of improvement against rliable 1.2.0."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from normlab.inference.estimates import estimate, interquartile_mean, mean, median
from normlab.inference.improvement import probability_of_improvement
from normlab.inference.profiles import performance_profile

pytestmark = [
    pytest.mark.rliable,
    pytest.mark.skipif(
        "NORMLAB_RLIABLE" not in os.environ,
        reason="NORMLAB_RLIABLE names no Python of an environment with rliable",
    ),
]

DRAW = np.random.default_rng(0)
# Forty runs of four tasks, rounded so that arms tie: with so many runs expanded percentiles are
# close to rliable's plain ones.
SCORES = DRAW.normal([0.7, 0.8, 0.5, 0.6], [0.1, 0.05, 0.02, 0.2], (40, 4)).round(2)
OTHERS = DRAW.normal([0.75, 0.7, 0.5, 0.6], [0.1, 0.05, 0.02, 0.2], (40, 4)).round(2)
THRESHOLDS = np.linspace(0.2, 1, 41)


@pytest.fixture(scope="module")
def oracle():
    given = {
        "scores": SCORES.tolist(),
        "others": OTHERS.tolist(),
        "thresholds": THRESHOLDS.tolist(),
    }
    # The oracle's environment must not see this one's paths.
    environment = {key: it for key, it in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [os.environ["NORMLAB_RLIABLE"], Path(__file__).with_name("rliable_oracle.py")],
        input=json.dumps(given),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "statistic"), [("mean", mean), ("median", median), ("iqm", interquartile_mean)]
)
def test_aggregates_are_rliables(oracle, name, statistic):
    assert estimate(list(SCORES.T), statistic).value == pytest.approx(oracle[name], rel=1e-12)


@pytest.mark.parametrize(("index", "statistic"), [(0, mean), (1, interquartile_mean)])
def test_intervals_are_near_rliables_where_runs_are_many(oracle, index, statistic):
    low, high = np.array(oracle["intervals"])[:, index]
    found = np.array(estimate(list(SCORES.T), statistic).interval)
    # Ours are about sqrt(40 / 39) · t(156) / 1.96 = 1.02 times as wide, and both are drawn.
    np.testing.assert_allclose(found, (low, high), atol=0.08 * (high - low))


def test_probability_of_improvement_is_rliables(oracle):
    found = probability_of_improvement(list(SCORES.T), list(OTHERS.T))
    assert found.value == pytest.approx(oracle["improvement"], rel=1e-12)


def test_profiles_are_rliables_and_their_bands_near(oracle):
    found = performance_profile(list(SCORES.T), THRESHOLDS)
    np.testing.assert_allclose(found.share, oracle["profile"], atol=1e-12)
    np.testing.assert_allclose([found.low, found.high], oracle["band"], atol=0.02)
