"""The coefficient encoder's objective: each term against what it says of the head; it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.schema import COEFFICIENTS
from fmv2.errors import UserError
from fmv2.face.camera import project
from fmv2.face.shading import ALBEDO, shade
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig
from tests.train.batches import changed, face_batch
from tests.train.objectives.learning import fresh_nets, learn, mean, unmoved
from train.objectives.coefficients import Coefficients, camera_loss, light_loss, rotation_loss

SHAPE = dataclasses.replace(
    CoefficientEncoderConfig.tiny(), layers=(1, 1, 1, 1), widths=(4, 4, 4, 6), image_size=32
)
TINY = Coefficients(coefficient_encoder=SHAPE)


def heads(count=8):
    batch, _ = face_batch(count, size=32, face=16)
    rng = np.random.default_rng(1)
    wanted = {
        name: 0.5 * rng.normal(size=(count, *shape)).astype(np.float32)
        for name, (shape, _) in COEFFICIENTS.items()
    }
    wanted["camera"][:, 0] += 6
    return changed(batch, coefficients=wanted)


def test_it_learns():
    nets = fresh_nets(TINY)
    history, state = learn(TINY, nets, heads(), steps=40, rate=1e-2)
    terms = ("shape", "expression", "pose", "camera", "light")
    assert history[0].keys() == {"loss", *terms, "gradient_norm", "ok"}
    assert not unmoved(nets, state)
    for term in terms:
        assert mean(history[-5:], term) < 0.9 * history[0][term], term
    weights = (1, 5, 10, 10, 5)
    summed = sum(w * history[0][term] for w, term in zip(weights, terms, strict=True))
    assert history[0]["loss"] == pytest.approx(summed, rel=1e-5)
    old, new = (
        x["coefficient_encoder"]["encoder"]["bn1"]["mean"]
        for x in (jax.tree.map(np.zeros_like, state.stats), state.stats)
    )
    assert not np.allclose(old[...], new[...])


def test_rotations_are_compared_as_rotations():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 3, 6)).astype(np.float32)
    angles = [
        (Rotation.from_rotvec(a) * Rotation.from_rotvec(b).inv()).magnitude()
        for a, b in zip(one.reshape(-1, 3), other.reshape(-1, 3), strict=True)
    ]
    expected = np.mean([2 * (1 - np.cos(angle)) for angle in angles])
    np.testing.assert_allclose(rotation_loss(one, other), expected, rtol=1e-5)
    half = np.array([[0.0, 3.0, 0.0]], np.float32)
    again = np.array([[0.0, 3.0 - 2 * np.pi, 0.0]], np.float32)
    assert rotation_loss(half, again) < 1e-10


def test_the_camera_is_compared_by_where_the_head_goes():
    found, wanted = np.array([[[5.0, 0.02, -0.01]], [[6.0, 0.01, 0.03]]], np.float32)
    origin = [project(jnp.zeros((1, 3)), jnp.asarray(x[0]))[0, :2] for x in (found, wanted)]
    expected = np.sum((origin[0] - origin[1]) ** 2) + (5 / 6 - 1) ** 2
    np.testing.assert_allclose(camera_loss(found, wanted), expected, rtol=1e-5)


def test_light_is_compared_by_what_falls_on_all_directions():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(1, 400_000, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions = directions.astype(np.float32)
    # So weak beside the first harmonic that nothing is clamped.
    base = np.zeros((9, 3), np.float32)
    base[0] = 2
    found, wanted = (base + 0.1 * rng.normal(size=(9, 3)).astype(np.float32) for _ in range(2))
    seen = [shade(directions, jnp.asarray(light)) / ALBEDO for light in (found, wanted)]
    expected = np.mean((seen[0] - seen[1]) ** 2)
    np.testing.assert_allclose(light_loss(found[None], wanted[None]), expected, rtol=0.01)


def test_wrong_weights_are_refused():
    with pytest.raises(UserError, match="shape_weight=-1, light_weight=-2: expected 0 or more"):
        Coefficients(shape_weight=-1, light_weight=-2)
