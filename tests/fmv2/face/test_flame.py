"""Skinning against a FLAME in plain NumPy float64 with 4×4 matrices, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from fmv2.face.flame import rotation_matrices, skin, triangles_within
from tests.fmv2.face.geometry import PARENTS, random_head


def reference(model, shape, expression, pose):
    """Linear blend skinning as the paper writes it."""
    shape, expression, pose = (np.asarray(a, np.float64) for a in (shape, expression, pose))
    arrays = {
        name: np.asarray(getattr(model, name), np.float64)
        for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
    }
    coefficients = np.zeros(arrays["shapedirs"].shape[-1])
    coefficients[: len(shape)] = shape
    coefficients[model.expression_offset :][: len(expression)] = expression
    shaped = arrays["v_template"] + arrays["shapedirs"] @ coefficients
    joints = arrays["J_regressor"] @ shaped
    rotations = Rotation.from_rotvec(pose).as_matrix()
    posed = shaped + arrays["posedirs"] @ (rotations[1:] - np.eye(3)).reshape(-1)

    worlds = []
    for joint, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if joint else 0)
        worlds.append(worlds[parent] @ local if joint else local)
    for joint, world in enumerate(worlds):
        rest = np.eye(4)
        rest[:3, 3] = -joints[joint]
        worlds[joint] = world @ rest
    blended = np.einsum("vj,jab->vab", arrays["weights"], worlds)
    return np.einsum("vab,vb->va", blended, np.pad(posed, ((0, 0), (0, 1)), constant_values=1))[
        :, :3
    ]


def coefficients(seed, identities=6, expressions=4):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size).astype(np.float32) for size in (identities, expressions, (5, 3))]


@pytest.mark.parametrize(("identities", "expressions"), [(6, 4), (3, 2), (0, 0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_skin_equals_plain_numpy(seed, identities, expressions):
    model, given = random_head(seed), coefficients(seed, identities, expressions)
    want = reference(model, *given)
    assert np.ptp(want) > 2
    np.testing.assert_allclose(jax.jit(skin)(model, *given), want, rtol=0, atol=1e-5)


def test_skin_in_a_batch_equals_one_by_one():
    model = random_head(0)
    batch = [jnp.stack(parts) for parts in zip(*map(coefficients, range(3)), strict=True)]
    many = jax.jit(jax.vmap(skin, in_axes=(None, 0, 0, 0)))(model, *batch)
    for row, given in zip(many, zip(*batch, strict=True), strict=True):
        np.testing.assert_allclose(row, skin(model, *given), rtol=0, atol=1e-5)


@pytest.mark.parametrize("turned", [True, False], ids=["posed", "at rest"])
def test_gradients_of_skin_agree_with_finite_differences(turned):
    with jax.enable_x64(True):
        model = jax.tree.map(
            lambda a: jnp.asarray(a, np.float64 if a.dtype == np.float32 else a.dtype),
            random_head(0, 8),
        )
        given = [jnp.asarray(a, jnp.float64) for a in coefficients(0)]
        given[2] = given[2] * turned
        check_grads(lambda *a: skin(model, *a), given, order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0, 1e-6, 1e-3, 0.03, 0.0317, 1.0, 3.14])
def test_rotations_of_every_size(size):
    axes = np.random.default_rng(0).normal(size=(8, 3))
    rotations = size * axes / np.linalg.norm(axes, axis=1, keepdims=True)
    want = Rotation.from_rotvec(rotations).as_matrix()
    np.testing.assert_allclose(rotation_matrices(jnp.float32(rotations)), want, atol=3e-7)


def test_wrong_lengths_are_refused_all_at_once():
    with pytest.raises(
        ValueError, match=r"shape has 7 .* only 6; expression has 5 .* 4; pose must"
    ):
        skin(random_head(0), jnp.zeros(7), jnp.zeros(5), jnp.zeros((2, 3)))


def test_triangles_within_a_region():
    faces = jnp.array([[0, 1, 2], [2, 1, 3], [4, 2, 0]])
    assert triangles_within(faces, jnp.array([2, 0, 1, 4])).tolist() == [True, False, True]
