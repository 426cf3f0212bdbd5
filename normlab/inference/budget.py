"""Expected result of tuning against the number of trials."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from .scores import Floats


@dataclass(frozen=True)
class BudgetCurve:
    """What tuning with fewer trials would have given.

    Attributes:
        trials: Numbers of trials n, from 1 to all.
        validation: Expected highest validation score of n of the trials.
        test: Expected test score of the one of n trials that has the highest validation score;
            None without test scores.
    """

    trials: np.ndarray
    validation: Floats
    test: Floats | None


def expected_best(validation: ArrayLike, test: ArrayLike | None = None) -> BudgetCurve:
    """Expected best of n trials, for each n, by the unbiased estimator of Tang et al. (2020).

    The mean over all subsets of n of the N trials ("Showing Your Work Doesn't Always Work", where
    drawing with replacement is shown to be biased): in rising order trial i is the best of
    C(i - 1, n - 1) of the C(N, n) subsets. Trials whose validation scores are equal are chosen
    with equal probability.

    Args:
        validation: Validation score of each trial, higher being better.
        test: Test score of each trial, where the test split was read for all of them.

    Raises:
        ValueError: There is no trial, a score is NaN, or the numbers of scores differ.
    """
    scores = np.asarray(validation, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0 or np.isnan(scores).any():
        raise ValueError(
            f"validation scores of shape {scores.shape}; expected at least one number a trial, "
            "the worst score for one that diverged"
        )
    order = np.argsort(scores, kind="stable")
    weights = _weights_of_best(scores.size)
    best = _weighted(weights, scores[order])
    chosen = None
    if test is not None:
        values = np.asarray(test, dtype=np.float64)
        if values.shape != scores.shape or np.isnan(values).any():
            raise ValueError(
                f"test scores of shape {values.shape} for {scores.size} trials; expected one each"
            )
        _, group = np.unique(scores, return_inverse=True)
        of_equals = np.bincount(group, values) / np.bincount(group)
        chosen = _weighted(weights, of_equals[group][order])
    return BudgetCurve(np.arange(1, scores.size + 1), best, chosen)


def _weights_of_best(count: int) -> Floats:
    """Row n - 1, column i - 1: the probability that trial i in rising order is the best of n."""
    n = np.arange(1, count + 1)[:, None]
    i = np.arange(1, count + 1)[None, :]
    # In logarithms, since binomial coefficients overflow at a thousand trials.
    within = np.maximum(i - n, 0)
    logarithm = (
        gammaln(i)
        - gammaln(n)
        - gammaln(within + 1)
        - (gammaln(count + 1) - gammaln(n + 1) - gammaln(count - n + 1))
    )
    return np.where(i >= n, np.exp(logarithm), 0.0)


def _weighted(weights: Floats, values: Floats) -> Floats:
    # An infinitely bad trial of weight 0 adds nothing, where 0 times infinity would be NaN.
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(weights > 0, weights * values, 0.0), axis=1)
