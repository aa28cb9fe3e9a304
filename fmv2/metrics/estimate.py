"""A mean and how sure it is: people are drawn anew, since pictures of one person are alike."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

LEVEL = 0.95
"""Of the confidence intervals."""
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float
    count: int
    """Of what it was taken over: pictures, phrases."""


def exact(value: float, count: int) -> Estimate:
    """A figure that is sure, such as a chance or the largest of some numbers."""
    return Estimate(float(value), float(value), float(value), count)


def estimate(values: Float[np.ndarray, " n"], people: Int[np.ndarray, " n"]) -> Estimate:
    """The mean.

    Args:
      values: one for each picture or phrase; NaN where there was nothing to measure.
      people: who is in it.
    Raises:
      ValueError: there was nothing to measure at all.
    """
    values, people = np.asarray(values, np.float64), np.asarray(people)
    there = ~np.isnan(values)
    if not there.any():
        raise ValueError("nothing was measured: every value is NaN")
    values, people = values[there], people[there]
    return bootstrap(lambda rows: values[rows].mean(), people)


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " m"]], float], people: Int[np.ndarray, " n"]
) -> Estimate:
    """Any statistic of some rows, and its percentile interval when people are drawn anew.

    Of one person nothing can be drawn: the interval is then without bounds.

    Args:
      statistic: of the rows that it is given, where some come more than once.
      people: who each row belongs to.
    Source: Efron and Tibshirani 1993, chapter 13; a person with all of their rows is drawn at once
      (Davison and Hinkley 1997, section 3.8).
    """
    rows_of = _rows_of(people)
    value, count = float(statistic(np.arange(len(people)))), len(people)
    if len(rows_of) < 2:
        return Estimate(value, -math.inf, math.inf, count)
    found = stats.bootstrap(
        (np.arange(len(rows_of)),),
        lambda drawn: statistic(np.concatenate([rows_of[i] for i in drawn])),
        vectorized=False,
        n_resamples=_DRAWS,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return Estimate(value, float(low), float(high), count)


def _rows_of(people: Int[np.ndarray, " n"]) -> Sequence[Int[np.ndarray, " m"]]:
    return [np.flatnonzero(people == person) for person in np.unique(people)]
