"""Attention against regions, and where pictures change."""

import numpy as np
import pytest

from fmv2.metrics.regions import attention_iou, chance_iou, change


def square(size, top, left, side):
    region = np.zeros((size, size), bool)
    region[top : top + side, left : left + side] = True
    return region


def test_a_map_that_is_the_region_is_perfect():
    region = square(32, 8, 8, 16)
    assert attention_iou(region.astype(float), region) == 1
    assert attention_iou(1 - region.astype(float), region) == 0
    # Neither scale nor offset of the map matters.
    shaped = np.random.default_rng(0).random((32, 32))
    assert attention_iou(0.01 * shaped + 3, region) == pytest.approx(attention_iou(shaped, region))


def test_half_of_it_counts_as_a_third():
    """As many pixels as the region has, half of them in it: 1/2 ÷ 3/2."""
    map_, region = square(32, 8, 8, 16), square(32, 8, 16, 16)
    assert attention_iou(map_.astype(float), region) == pytest.approx(1 / 3)


def test_coarse_maps_are_laid_over_the_whole_picture():
    """The centre of a cell of four pixels lies between its second and third."""
    coarse = np.zeros((8, 8))
    coarse[2, 5] = 1
    assert attention_iou(coarse, square(32, 8, 20, 4)) == 1
    assert attention_iou(coarse, square(32, 20, 8, 4)) == 0
    # Beyond its own pixels it falls off to all sides.
    assert attention_iou(coarse, square(32, 7, 19, 6)) > 0.75


def test_a_map_that_says_nothing_has_what_chance_has():
    region = square(32, 0, 0, 16)
    assert chance_iou(region) == pytest.approx(0.25 / 1.75)
    assert attention_iou(np.full((8, 8), 0.3), region) == pytest.approx(chance_iou(region))
    rng = np.random.default_rng(0)
    drawn = [attention_iou(rng.random((32, 32)), region) for _ in range(50)]
    assert np.mean(drawn) == pytest.approx(chance_iou(region), abs=0.01)


def test_an_empty_region_is_not_measured():
    empty = np.zeros((16, 16), bool)
    assert np.isnan(attention_iou(np.ones((8, 8)), empty))
    assert np.isnan(chance_iou(empty))


def test_change_is_counted_where_it_is_asked_for():
    before = np.zeros((3, 4, 4, 3), np.uint8)
    after = before.copy()
    after[0, 0, 0] = 255
    after[1, 0, 0, 0] = 51  # one channel, by a fifth
    where = np.zeros((3, 4, 4), bool)
    where[:2, 0, :2] = True
    found = change(before, after, where)
    np.testing.assert_allclose(found, [0.5**0.5, (0.04 / 6) ** 0.5, np.nan])
    np.testing.assert_array_equal(change(before, after, ~where), 0)
    np.testing.assert_allclose(change(before / 255, after, where), found)
