"""The aligned face against OpenCV, and the similarity against its definition."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmv2.face.align import TEMPLATE, crop_face, similarity


def similar(scale, degrees, shift):
    turn = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.concatenate([matrix, np.array(shift)[:, None]], axis=1)


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("degrees", [0, 20, -130])
def test_similarity_is_found_again(degrees):
    matrix = similar(1.7, degrees, [30, -8])
    found = similarity(jnp.asarray(TEMPLATE), jnp.asarray(apply(matrix, TEMPLATE), jnp.float32))
    np.testing.assert_allclose(found, matrix, rtol=1e-4, atol=1e-3)


def test_similarity_is_the_nearest():
    target = TEMPLATE + np.random.normal(0, 4, TEMPLATE.shape).astype(np.float32)
    best = np.asarray(similarity(jnp.asarray(TEMPLATE), jnp.asarray(target)), np.float64)

    def error(matrix):
        return np.sum((apply(matrix, TEMPLATE) - target) ** 2)

    (a, b), shift = best[:, 0], best[:, 2]
    for change in np.random.normal(0, 1e-2, (50, 4)):
        scale, degrees = (
            np.hypot(a + change[0], b + change[1]),
            np.arctan2(b + change[1], a + change[0]),
        )
        other = similar(scale, np.rad2deg(degrees), shift + 10 * change[2:])
        assert error(other) > error(best)


@pytest.mark.parametrize("size", [112, 56])
def test_crop_equals_opencv(size):
    image = cv2.GaussianBlur(np.random.rand(160, 200, 3).astype(np.float32), (0, 0), 2)
    landmarks = apply(similar(1.2, 15, [40, 10]), TEMPLATE).astype(np.float32)
    ours = crop_face(jnp.asarray(image), jnp.asarray(landmarks), size)
    template = (TEMPLATE + 0.5) * size / 112 - 0.5
    matrix = np.asarray(similarity(jnp.asarray(landmarks), jnp.asarray(template, jnp.float32)))
    theirs = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
    # OpenCV places samples on a grid of 1/32 pixel.
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    assert np.abs(np.asarray(ours) - theirs).mean() < 1e-3


def test_crop_sees_landmarks_at_the_template_and_black_beyond():
    image = np.zeros((64, 64, 1), np.float32)
    landmarks = np.array([[20, 30], [43, 30], [31, 44], [22, 55], [41, 55]], np.float32)
    image[30, 20] = 1
    crop = np.asarray(crop_face(jnp.asarray(image), jnp.asarray(landmarks)))[..., 0]
    row, column = np.unravel_index(crop.argmax(), crop.shape)
    assert abs(column - TEMPLATE[0, 0]) < 3
    assert abs(row - TEMPLATE[0, 1]) < 3
    assert np.asarray(crop_face(jnp.ones((64, 64, 1)), jnp.asarray(landmarks + 500))).max() == 0


def test_gradient_reaches_the_image():
    landmarks = jnp.asarray(TEMPLATE) / 2
    gradient = jax.grad(lambda image: crop_face(image, landmarks).sum())(jnp.ones((64, 64, 1)))
    assert np.isfinite(gradient).all()
    assert np.asarray(gradient)[32, 32, 0] > 0
