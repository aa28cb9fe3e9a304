"""Pose, light and shading maps, against what they mean."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.procedural import chance
from data.procedural.head import make_head
from data.procedural.picture import draw
from data.procedural.scene import pose_of
from fmv2.face.head import Head
from fmv2.face.shading import ALBEDO, shade
from fmv2.metrics.head import light_error, pose_error, shading_error, shading_maps
from fmv2.metrics.scorer import Reading


def test_pose_is_the_angle_between_two_rotations():
    rng = np.random.default_rng(0)
    one = Rotation.random(5, rng=rng)
    turn = Rotation.from_rotvec([[0, 0.2, 0]] * 5)
    jaws = rng.normal(size=(2, 5, 3))
    found, wanted = (
        np.concatenate([x.as_rotvec(), jaw], axis=1)
        for x, jaw in zip((one, one * turn), jaws, strict=True)
    )
    np.testing.assert_allclose(pose_error(found, wanted), np.degrees(0.2), rtol=1e-6)
    # A rotation and the other way round to it are one.
    half, again = np.array([[0, 3.0, 0]]), np.array([[0, 3.0 - 2 * np.pi, 0]])
    np.testing.assert_allclose(pose_error(half, again), 0, atol=1e-6)


def test_light_is_what_falls_on_all_directions_whatever_its_strength():
    rng = np.random.default_rng(0)
    wanted, other = 0.1 * rng.normal(size=(2, 1, 9, 3)).astype("f")
    wanted[:, 0] += 2  # so weak beside the first that nothing is clamped
    found = wanted + 0.3 * other
    assert light_error(3 * wanted, wanted)[0] == pytest.approx(0, abs=1e-6)
    directions = rng.normal(size=(1, 200_000, 3))
    directions = (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).astype("f")
    a, b = (np.asarray(shade(directions, x[0]), float) / ALBEDO for x in (found, wanted))
    scale = (a * b).sum() / (a * a).sum()
    expected = np.sqrt(((scale * a - b) ** 2).mean() / (b**2).mean())
    np.testing.assert_allclose(light_error(found, wanted), expected, rtol=0.02)
    np.testing.assert_allclose(light_error(5 * found, wanted), light_error(found, wanted))
    # A negative of it is scaled to nothing.
    np.testing.assert_allclose(light_error(-wanted, wanted), 1)


def test_shading_counts_where_either_map_shows_a_face():
    one, other = np.zeros((2, 1, 4, 4, 3))
    one[0, :2, :2] = 0.5
    other[0, :2, 1:3] = 0.5
    # Two of six pixels agree.
    np.testing.assert_allclose(shading_error(one, other), np.sqrt(4 / 6) / 2)
    np.testing.assert_array_equal(shading_error(other, other), 0)
    bytes_ = (255 * other).astype(np.uint8)
    np.testing.assert_allclose(shading_error(bytes_, other), 0, atol=0.003)
    np.testing.assert_array_equal(shading_error(0 * one, 0 * one), np.nan)
    # In cells of two pixels a half of one column of cells stands where a half of both is wanted.
    np.testing.assert_allclose(shading_error(one, other, cell=2), 0.25)


def test_a_perfect_reading_gives_the_record_s_own_map():
    """Pixels on the edge of the face may see another triangle."""
    factors = chance.stack([chance.factors(0, i, i) for i in range(2)])
    wanted = np.asarray(draw(factors, size=64, face_size=16).shading)
    joints = [pose_of(chance.factors(0, i, i)) for i in range(2)]
    reading = Reading(
        identity=factors.identity,
        expression=factors.expression,
        pose=np.stack([np.concatenate([x[0], x[2]]) for x in joints]),
        camera=factors.camera,
        light=factors.light,
        logits={},
    )
    made = make_head()
    found = np.asarray(shading_maps(reading, Head(made.model, made.surface), size=64))
    assert found.shape == (2, 64, 64, 3)
    assert shading_error(found, wanted).max() < 0.01
    assert shading_error(found[::-1], wanted).min() > 0.05
