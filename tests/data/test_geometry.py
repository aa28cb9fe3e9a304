"""Pixels, masks and points move alike, and masks shrink exactly."""

import math

import cv2
import numpy as np
import pytest
import torch

from data.geometry import flip_labels, flip_landmarks, flip_words, shrink_masks
from fmv2.face.labels import NUMBER
from fmv2.pictures import Window

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))


def dotted(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Five coloured discs on black, and where their centres are."""
    points = np.float32([[0.4, 0.3], [0.6, 0.32], [0.5, 0.5], [0.42, 0.68], [0.58, 0.7]])
    side = min(height, width)
    points = points * side + [(width - side) // 2, (height - side) // 2]
    picture = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    for (px, py), color in zip(points, COLORS, strict=True):
        picture[np.hypot(x - px, y - py) < side / 16] = color
    return picture, points.astype(np.float32)


def centre(near: np.ndarray) -> np.ndarray:
    """x, y of a soft blob's middle."""
    weight = near / near.sum()
    y, x = np.indices(weight.shape)
    return np.array([(weight * x).sum(), (weight * y).sum()])


@pytest.mark.parametrize(("height", "width", "size"), [(96, 96, 96), (97, 140, 64), (130, 80, 113)])
@pytest.mark.parametrize("flipped", [False, True])
def test_each_landmark_stays_on_its_dot(height, width, size, flipped):
    picture, points = dotted(height, width)
    window = Window.of(height, width, size)
    picture, points = window.picture(picture), window.landmarks(points)
    colors = COLORS
    if flipped:
        picture, points = picture[:, ::-1], flip_landmarks(points, size)
        colors = [COLORS[i] for i in (1, 0, 2, 4, 3)]  # left and right changed their names
    assert picture.shape == (size, size, 3)
    for point, color in zip(points, colors, strict=True):
        # The discs are red, green, blue, …: what matches one colour is one disc.
        match = np.abs(picture.astype(int) - color).sum(-1)
        near = np.where(match < 200, 200 - match, 0)
        np.testing.assert_allclose(centre(near), point, atol=0.35)


def test_masks_are_where_the_picture_is():
    """A blob that is both mask and white in the picture: each cell has the picture's own mean."""
    y, x = np.mgrid[:120, :200]
    blob = (np.hypot(x - 80, y - 50) < 30).astype(np.uint8)
    window = Window.of(120, 200, 60)
    picture = window.picture(np.repeat(255 * blob[..., None], 3, axis=-1))
    masks = shrink_masks(window.cut(blob << 3), 4, [15], "area")[15]
    mean = picture[..., 0].reshape(15, 4, 15, 4).mean((1, 3)) / 255
    np.testing.assert_allclose(masks[3], mean, atol=0.003)  # the picture is rounded to bytes
    assert not masks[[0, 1, 2, 4, 5, 6, 7]].any()


@pytest.mark.parametrize(
    ("side", "grid"), [(64, 8), (64, 64), (60, 7), (50, 32), (31, 30), (8, 12), (256, 1)]
)
def test_area_is_the_exact_fraction(side, grid):
    planes = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    masks = shrink_masks(planes, 5, [grid], "area")[grid]
    # Every pixel as grid×grid small ones: then each cell is a whole number of those.
    small = side * grid // math.gcd(side, grid)
    fine = np.repeat(np.repeat(planes, small // side, axis=0), small // side, axis=1)
    block = small // grid
    for bit in range(5):
        mean = ((fine >> bit) & 1).reshape(grid, block, grid, block).mean((1, 3))
        np.testing.assert_allclose(masks[bit], mean, atol=1e-6)
    assert not masks[5:].any()
    assert masks.shape == (8, grid, grid)
    assert masks.dtype == np.float32


@pytest.mark.parametrize(("side", "grid"), [(64, 8), (248, 1), (256, 1), (1024, 2)])
def test_a_full_mask_is_one(side, grid):
    """However many pixels a cell has."""
    masks = shrink_masks(np.full((side, side), 0b11011, np.uint8), 6, [grid], "area")[grid]
    full = np.isin(np.arange(8), [0, 1, 3, 4])
    np.testing.assert_array_equal(masks, np.broadcast_to(full[:, None, None], masks.shape))


def test_nested_grids_agree_with_each_alone():
    planes = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    together = shrink_masks(planes, 8, [4, 16, 8], "area")
    for grid, masks in together.items():
        np.testing.assert_array_equal(masks, shrink_masks(planes, 8, [grid], "area")[grid])


@pytest.mark.parametrize(("side", "grid"), [(512, 32), (512, 64), (500, 32), (33, 32), (20, 32)])
def test_bilinear_is_torchs(side, grid):
    planes = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    masks = shrink_masks(planes, 8, [grid], "bilinear")[grid]
    bits = np.stack([(planes >> bit) & 1 for bit in range(8)]).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(bits)[None], (grid, grid), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(masks, expected[0].numpy(), atol=1e-5)


def test_labels_take_the_nearest():
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(Window.of(4, 4, 2).labels(labels), [[5, 7], [13, 15]])
    np.testing.assert_array_equal(Window.of(4, 4, 4).labels(labels), labels)
    grown = Window.of(4, 4, 8).labels(labels)
    np.testing.assert_array_equal(grown, cv2.resize(labels, (8, 8), interpolation=0))


def test_flipped_labels_change_sides_but_not_the_lips():
    names = ("l_brow", "r_eye", "l_lip", "u_lip", "neck_l", "nose")
    flipped = flip_labels(np.uint8([[NUMBER[name] for name in names]]))[0]
    expected = [NUMBER[n] for n in ("nose", "neck_l", "u_lip", "l_lip", "l_eye", "r_brow")]
    np.testing.assert_array_equal(flipped, expected)


def test_unknown_landmarks_stay_unknown():
    points = np.full((5, 2), np.nan, np.float32)
    assert np.isnan(flip_landmarks(Window.of(30, 40, 20).landmarks(points), 20)).all()


def test_left_and_right_are_exchanged():
    np.testing.assert_array_equal(flip_words(np.int32([7, 1, 2, 1]), 1, 2), [7, 2, 1, 2])
