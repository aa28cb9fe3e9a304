"""Identity: by hand on a few vectors."""

import numpy as np
import pytest

from fmv2.metrics.identity import (
    cosines,
    cosines_with_others,
    equal_error_rate,
    rank_one,
    rank_one_chance,
)

PEOPLE = np.array([7, 8, 9])
# At 0, 60 and 180 degrees, of different lengths.
GALLERY = np.array([[2.0, 0.0], [0.5, 0.5 * 3**0.5], [-3.0, 0.0]])


def test_cosines_do_not_look_at_lengths():
    turned = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    np.testing.assert_allclose(cosines(turned, GALLERY), [1, 0.5, 0], atol=1e-12)
    np.testing.assert_array_equal(cosines(np.zeros((3, 2)), GALLERY), 0)


def test_others_are_all_but_the_picture_s_person():
    found = cosines_with_others(GALLERY, PEOPLE, GALLERY, PEOPLE)
    np.testing.assert_allclose(found, [(0.5 - 1) / 2, (0.5 - 0.5) / 2, (-1 - 0.5) / 2], atol=1e-12)
    twice = cosines_with_others(GALLERY, np.array([7, 7, 9]), GALLERY, np.array([7, 7, 9]))
    np.testing.assert_allclose(twice, [-1, -0.5, (-1 - 0.5) / 2], atol=1e-12)
    assert np.isnan(cosines_with_others(GALLERY, np.ones(3), GALLERY, np.ones(3))).all()


def test_rank_one_is_of_people_not_of_rows():
    near = np.array([[1.0, 0.1], [1.0, 0.2], [-1.0, 0.1]])
    np.testing.assert_array_equal(
        rank_one(near, np.array([7, 8, 9]), GALLERY, PEOPLE), [True, False, True]
    )
    np.testing.assert_array_equal(
        rank_one(near, np.array([7, 8, 9]), GALLERY, np.array([8, 8, 9])), [False, True, True]
    )
    chance = rank_one_chance(np.array([7, 8, 1]), np.array([7, 8, 8, 9]))
    np.testing.assert_allclose(chance, [0.25, 0.5, 0])


def test_equal_error_rate_on_scores_that_are_told():
    """One-dimensional pictures of unit length give cosines as wanted."""

    def rate(same, different):
        scores = np.array([*same, *different])
        vectors = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)
        people = np.array([0] * len(same) + [1] * len(different))
        return equal_error_rate(vectors, people, np.array([[1.0, 0.0]]), np.array([0]))

    assert rate([0.8, 0.9], [0.1, 0.2]) == 0
    assert rate([0.1, 0.2], [0.8, 0.9]) == 1
    # At a threshold of 0.5 one in four is wrong on either side.
    assert rate([0.4, 0.6, 0.7, 0.8], [0.1, 0.2, 0.3, 0.5]) == 0.25


def test_equal_error_rate_of_noise_is_one_half():
    rng = np.random.default_rng(0)
    people = np.arange(200)
    found = equal_error_rate(rng.normal(size=(200, 8)), people, rng.normal(size=(200, 8)), people)
    assert found == pytest.approx(0.5, abs=0.06)
