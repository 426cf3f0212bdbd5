"""Prints what rliable says of scores: JSON in by standard input, JSON out.

Run by the Python of an environment that has rliable, which cannot share one with normlab: it needs
older pandas and arch.
"""

import json
import sys

import numpy as np
from rliable import library, metrics

given = json.load(sys.stdin)
runs, others = np.array(given["scores"]), np.array(given["others"])  # runs x tasks
thresholds = np.array(given["thresholds"])


def aggregates(scores: np.ndarray) -> np.ndarray:
    return np.array([metrics.aggregate_mean(scores), metrics.aggregate_iqm(scores)])


np.random.seed(0)  # rliable draws from the global state
points, intervals = library.get_interval_estimates({"arm": runs}, aggregates, reps=5000)
profiles, bands = library.create_performance_profile({"arm": runs}, thresholds, reps=2000)
json.dump(
    {
        "mean": points["arm"][0],
        "iqm": points["arm"][1],
        # With one run of each "task" rliable's median of task means is the median of all scores.
        "median": metrics.aggregate_median(runs.reshape(1, -1)),
        "intervals": intervals["arm"].tolist(),  # lower and upper end x statistic
        "improvement": metrics.probability_of_improvement(runs, others),
        "profile": profiles["arm"].tolist(),
        "band": bands["arm"].tolist(),
    },
    sys.stdout,
)
