"""The procedural head is one that FLAME's code can skin, and its fields do what they are called."""

import jax.numpy as jnp
import numpy as np
import pytest

from data.procedural.factors import EXPRESSION, IDENTITY
from data.procedural.head import JAW_TURN, PARTS, SHAPES, make_head
from data.procedural.wardrobe import make_wardrobe
from fmv2.face.flame import skin

_MIRROR_68 = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
]  # fmt: skip


@pytest.fixture(scope="module")
def head():
    return make_head()


def posed(head, *, jaw=0.0, **fields):
    identity = [fields.get(name, 0.0) for name in IDENTITY]
    expression = [fields.get(name, 0.0) for name in EXPRESSION]
    pose = np.zeros((5, 3), np.float32)
    pose[2, 0] = jaw
    vertices = skin(
        head.model,
        jnp.array(identity, jnp.float32),
        jnp.array(expression, jnp.float32),
        jnp.asarray(pose),
    )
    return np.asarray(vertices)


def landmarks(head, vertices):
    corners = vertices[np.asarray(head.surface.landmark_corners)]
    return (corners * np.asarray(head.surface.landmark_barycentrics)[..., None]).sum(1)


def test_the_arrays_are_those_of_a_flame_model(head):
    model = head.model
    count = len(model.v_template)
    assert model.shapedirs.shape == (count, 3, 150)
    assert model.posedirs.shape == (count, 3, 36)
    assert model.J_regressor.shape == (5, count)
    assert model.parents == (-1, 0, 1, 1, 1)
    np.testing.assert_allclose(model.weights.sum(1), 1, atol=1e-6)
    assert np.asarray(model.weights).min() >= -1e-6
    np.testing.assert_allclose(model.J_regressor.sum(1), 1, atol=1e-5)
    faces = np.asarray(model.faces)
    assert 0 <= faces.min() <= faces.max() < count
    assert not np.asarray(model.shapedirs[..., len(IDENTITY) : SHAPES]).any()


def test_every_field_moves_the_surface(head):
    moved = np.abs(np.asarray(head.model.shapedirs)).max((0, 1))
    shaped = np.array(IDENTITY) != "brow_thickness"  # that one is painted
    assert (moved[: len(IDENTITY)][shaped] > 4e-4).all()
    assert (
        moved[SHAPES : SHAPES + len(EXPRESSION)][np.array(EXPRESSION) != "mouth_open"] > 1e-3
    ).all()


def test_normals_point_outwards(head):
    vertices, faces = np.asarray(head.model.v_template), np.asarray(head.model.faces)
    for part in ("skin", "ear_left", "ear_right", "eye_left", "eye_right"):
        corners = vertices[faces[head.part_of_face == PARTS.index(part)]]
        # Six times the volume that is enclosed.
        assert np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) > 0, part


def test_landmarks_are_mirror_images_in_ibugs_order(head):
    points = landmarks(head, np.asarray(head.model.v_template))
    np.testing.assert_allclose(points[_MIRROR_68] * [-1, 1, 1], points, atol=2.5e-3)
    assert points[0, 0] < points[8, 0] < points[16, 0]  # the jaw from the head's right
    assert points[8, 1] < points[57, 1] < points[51, 1] < points[30, 1] < points[27, 1]


def test_an_open_jaw_parts_the_lips_and_leaves_the_rest(head):
    shut, opened = posed(head), posed(head, jaw=JAW_TURN, mouth_open=1.0)
    gaps = [p[62, 1] - p[66, 1] for p in (landmarks(head, shut), landmarks(head, opened))]
    assert gaps[1] > gaps[0] + 0.015
    above = shut[:, 1] > 0.02
    np.testing.assert_allclose(opened[above], shut[above], atol=1e-3)


@pytest.mark.parametrize(
    ("field", "measure"),
    [
        ("face_width", lambda p: p[16, 0] - p[0, 0]),
        ("nose_length", lambda p: p[27, 1] - p[33, 1]),
        ("eye_spacing", lambda p: p[42:48, 0].mean() - p[36:42, 0].mean()),
        ("mouth_width", lambda p: p[54, 0] - p[48, 0]),
        ("chin_length", lambda p: p[57, 1] - p[8, 1]),
        ("smile", lambda p: p[[48, 54], 1].mean() - p[57, 1]),
        ("mouth_frown", lambda p: p[51, 1] - p[[48, 54], 1].mean()),
        ("brow_raise", lambda p: p[17:27, 1].mean() - p[36:48, 1].mean()),
        ("brow_furrow", lambda p: p[36:48, 1].mean() - p[[21, 22], 1].mean()),
        ("pout", lambda p: p[48, 0] - p[54, 0]),
    ],
)
def test_a_field_does_what_it_is_called(head, field, measure):
    still, changed = (measure(landmarks(head, posed(head, **{field: x}))) for x in (0.0, 1.0))
    assert changed > still + 5e-4


def test_what_is_not_worn_is_a_point_and_hats_sit_on_the_head(head):
    top = np.asarray(head.model.v_template)[:, 1].max()
    for name, item in make_wardrobe().items():
        spread = np.ptp(item.places, axis=1).max(1)
        assert (spread[1:] > 0).any(), name
        assert item.faces.max() < item.places.shape[1] == len(item.anchors) == len(item.grain)
    hat = make_wardrobe()["hat"].places
    assert np.ptp(hat[0], axis=0).max() == 0
    assert (hat[1:, :, 1].max(1) > top).all()
