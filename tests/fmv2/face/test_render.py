"""Camera, light and the whole rendering against float64 NumPy, and the gradients through it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fmv2.face.camera import crop_to_image, project, to_pixels
from fmv2.face.flame import skin
from fmv2.face.render import Surface, render
from fmv2.face.shading import shade, vertex_normals
from tests.fmv2.face import reference
from tests.fmv2.face.geometry import ball, random_head

CAMERA = np.float32([0.9, 0.06, -0.04])
IMAGE_FROM_CROP = np.float32([[0.21, -0.05, 3.0], [0.05, 0.21, -4.5]])
SIZE = (40, 56)

drawn_by = jax.jit(render, static_argnames="size")


def light(seed=0):
    coefficients = 0.4 * np.random.default_rng(seed).normal(size=(9, 3))
    coefficients[0] += 2
    return coefficients.astype(np.float32)


def surface(faces, labels=None):
    rng = np.random.default_rng(0)
    return Surface(
        faces=jnp.asarray(faces),
        labels=jnp.arange(1, len(faces) + 1) if labels is None else jnp.asarray(labels),
        landmark_corners=jnp.asarray(faces[rng.integers(0, len(faces), 68)]),
        landmark_barycentrics=jnp.asarray(rng.dirichlet(np.ones(3), 68), jnp.float32),
    )


def bowl():
    """The front of a ball turned by 115°: seen from outside on one side, else from inside."""
    vertices, faces = ball(24, 36)
    faces = faces[(vertices[faces][..., 2] > 0.1).all(axis=1)]
    cos, sin = np.cos(np.radians(115)), np.sin(np.radians(140))
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return (vertices @ turn.T).astype(np.float32), faces


def test_a_camera_places_known_points():
    projected = project(jnp.array([[0.1, 0.2, 0.3]]), jnp.array([2.0, 0.5, -0.1]))
    np.testing.assert_allclose(projected, [[1.2, -0.2, -0.6]], atol=1e-6)
    # A crop of 224 pixels from an image, its first pixel at column 10, row 20, unscaled.
    shift = jnp.array([[1.0, 0.0, 10.0], [0.0, 1.0, 20.0]])
    corners = jnp.array([[-1.0, -1.0, 0.5], [1.0, 1.0, 0.5]])
    placed = crop_to_image(corners, shift, (300, 400))
    np.testing.assert_allclose(
        to_pixels(placed, (300, 400)), [[9.5, 19.5], [233.5, 243.5]], rtol=1e-6
    )
    np.testing.assert_array_equal(placed[:, 2], [0.5, 0.5])


@pytest.mark.parametrize("column", [0, 1, 6])
def test_pixel_centres_lie_at_whole_numbers(column):
    pixels = to_pixels(jnp.array([[(2 * column + 1) / 7 - 1, -1 + 1 / 5]]), (5, 7))
    np.testing.assert_allclose(pixels, [[column, 0]], atol=1e-6)


def test_normals_of_a_ball_point_outwards():
    vertices, faces = ball(24, 36, radii=(0.1, 0.1, 0.1))  # in metres, as FLAME
    normals = vertex_normals(jnp.asarray(vertices), jnp.asarray(faces))
    np.testing.assert_allclose(normals, reference.vertex_normals(vertices, faces), atol=2e-6)
    assert np.sum(normals * vertices * 10, axis=-1).min() > 0.99
    tiny = vertex_normals(jnp.asarray(vertices * np.float32(1e-5)), jnp.asarray(faces))
    np.testing.assert_allclose(tiny, normals, atol=1e-4)


def test_vertices_of_no_triangle_have_no_normal_and_no_gradient():
    vertices = jnp.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    faces = jnp.array([[0, 1, 2]])
    np.testing.assert_array_equal(vertex_normals(vertices, faces)[3], [0, 0, 0])
    gradient = jax.grad(lambda v: jnp.sum(vertex_normals(v, faces) ** 3))(vertices)
    assert np.isfinite(gradient).all()


def test_each_harmonic_by_itself():
    normals = np.random.default_rng(0).normal(size=(5, 6, 3))
    for harmonic in range(9):
        lights = np.zeros((9, 3))
        lights[harmonic] = [0.5, 1.0, -1.0]
        got = shade(jnp.float32(normals), jnp.float32(lights))
        want = reference.shade(normals, lights)
        assert (want > 0).any()
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("head", [bowl, lambda: ball(24, 36)], ids=["bowl", "ball"])
def test_rendering_equals_float64_numpy(head):
    vertices, faces = head()
    got = drawn_by(
        vertices, surface(faces), CAMERA, light(), size=SIZE, image_from_crop=IMAGE_FROM_CROP
    )
    triangle, normals, depth, shading, turned_away = reference.render(
        vertices, faces, CAMERA, light(), IMAGE_FROM_CROP, SIZE
    )
    np.testing.assert_array_equal(got.labels, triangle + 1)
    np.testing.assert_allclose(got.normals, normals, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.depth, depth, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.shading, shading, rtol=0, atol=1e-5)
    assert (turned_away.sum() > 50) == (head is bowl)
    assert (triangle < 0).any()
    inner = shading[(shading > 0) & (shading < 1)]
    assert len(inner) > 200
    assert np.ptp(inner) > 0.5


def test_without_a_crop_the_camera_fills_the_picture():
    vertices, faces = ball(12, 18)
    drawn = drawn_by(vertices, surface(faces), CAMERA, light(), size=(32, 32))
    identity = np.array([[32 / 224, 0, 0], [0, 32 / 224, 0]])
    want = reference.render(vertices, faces, CAMERA, light(), identity, (32, 32))[3]
    np.testing.assert_allclose(drawn.shading, want, rtol=0, atol=1e-5)


def test_landmarks_lie_where_the_surface_is_drawn():
    vertices, faces = ball(12, 18)
    head = surface(faces)
    drawn = render(
        vertices, head, CAMERA, light(), size=SIZE, image_from_crop=jnp.asarray(IMAGE_FROM_CROP)
    )
    projected = reference.project(vertices, CAMERA, IMAGE_FROM_CROP, SIZE)
    barycentrics = np.asarray(head.landmark_barycentrics, np.float64)[..., None]
    on_surface = (projected[head.landmark_corners] * barycentrics).sum(axis=1)
    want = ((on_surface[:, :2] + 1) * [SIZE[1], SIZE[0]] - 1) / 2
    np.testing.assert_allclose(drawn.landmarks, want, rtol=0, atol=1e-4)
    eyes = [want[36:42].mean(axis=0), want[42:48].mean(axis=0)]
    np.testing.assert_allclose(drawn.five_points, [*eyes, want[30], want[48], want[54]], atol=1e-4)


def test_a_batch_equals_one_by_one():
    vertices, faces = ball(12, 18)
    heads = jnp.stack([vertices, vertices[:, [2, 0, 1]], 0.5 * vertices])
    lights = jnp.stack([light(seed) for seed in range(3)])
    head = surface(faces)
    many = jax.jit(jax.vmap(lambda *a: render(a[0], head, CAMERA, a[1], size=(24, 24))))
    many = many(heads, lights)
    for index in range(3):
        one = drawn_by(heads[index], head, CAMERA, lights[index], size=(24, 24))
        for got, want in zip(many, one, strict=True):
            np.testing.assert_allclose(got[index], want, rtol=0, atol=1e-5)


def test_gradients_from_coefficients_to_pixels_agree_with_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        vertices, faces = ball(7, 9)
        model = dataclasses.replace(random_head(0, len(vertices)), v_template=vertices)
        model = jax.tree.map(
            lambda a: jnp.asarray(a, np.float64 if a.dtype == np.float32 else a.dtype), model
        )
        head = surface(faces)

        @jax.jit
        def pictures(shape, expression, pose, camera, lights):
            posed = skin(model, 0.2 * shape, 0.2 * expression, 0.2 * pose)
            drawn = render(posed, head, camera, lights, size=(10, 12))
            depth = jnp.where(jnp.isfinite(drawn.depth), drawn.depth, 0.0)
            return drawn.shading, drawn.normals, depth, drawn.landmarks / 10, drawn.five_points / 10

        given = [rng.normal(size=size) for size in (6, 4, (5, 3))]
        given += [np.float64(CAMERA), np.float64(light())]
        assert (pictures(*given)[0] > 0).mean() > 0.3
        check_grads(pictures, given, order=1, modes=["rev"], rtol=1e-5, atol=1e-5)
