"""Means and their intervals: what they cover, and that people are drawn whole."""

import math

import numpy as np
import pytest

from fmv2.metrics.estimate import bootstrap, estimate, exact


def test_the_interval_is_that_of_the_normal_law_for_many_people():
    rng = np.random.default_rng(1)
    values = rng.normal(3, 2, 400)
    found = estimate(values, np.arange(400))
    assert found.value == pytest.approx(values.mean())
    assert found.count == 400
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_pictures_of_one_person_are_not_evidence_of_their_own():
    """Each person's value ten times over says no more than once."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=30)
    once = estimate(values, np.arange(30))
    often = estimate(values.repeat(10), np.arange(30).repeat(10))
    assert often.value == pytest.approx(once.value)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.01)
    loose = estimate(values.repeat(10), np.arange(300))
    assert loose.high - loose.low < 0.5 * (once.high - once.low)


def test_people_weigh_by_their_pictures():
    found = estimate(np.array([0.0, 0.0, 0.0, 1.0]), np.array([5, 5, 5, 9]))
    assert (found.value, found.low, found.high) == (0.25, 0, 1)


def test_what_could_not_be_measured_is_left_out():
    values = np.array([np.nan, 1.0, 3.0])
    found = estimate(values, np.array([0, 1, 2]))
    assert (found.value, found.count) == (2, 2)
    with pytest.raises(ValueError, match="every value is NaN"):
        estimate(values[:1], np.array([0]))


def test_any_statistic_and_one_person():
    values = np.array([1.0, 5.0, 9.0])
    found = bootstrap(lambda rows: values[rows].max(), np.arange(3))
    assert (found.value, found.low, found.high) == (9, 1, 9)
    alone = estimate(values, np.zeros(3, int))
    assert (alone.value, alone.low, alone.high) == (5, -math.inf, math.inf)
    assert exact(0.25, 8) == type(alone)(0.25, 0.25, 0.25, 8)


def test_it_is_the_same_every_time():
    values = np.random.default_rng(0).random(20)
    assert estimate(values, np.arange(20)) == estimate(values, np.arange(20))
