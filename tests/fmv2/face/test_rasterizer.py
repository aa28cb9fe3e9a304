"""The z-buffer against a brute force, pixel by pixel, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fmv2.face import rasterizer
from fmv2.face.rasterizer import interpolate, rasterize
from tests.fmv2.face import reference
from tests.fmv2.face.geometry import ball

drawn = jax.jit(rasterize, static_argnames="size")


def normalised(pixels, size):
    """Pixel coordinates, centres at whole numbers, to normalised ones: exact at powers of two."""
    pixels = np.asarray(pixels, np.float64)
    xy = (2 * pixels[:, :2] + 1) / np.array(size[::-1]) - 1
    return np.concatenate([xy, pixels[:, 2:]], -1).astype(np.float32)


def assert_equals_brute_force(projected, faces, size):
    fragments = drawn(projected, faces, size=size)
    triangle, barycentrics, depth = reference.rasterize(projected, faces, size)
    np.testing.assert_array_equal(fragments.triangle, triangle)
    np.testing.assert_allclose(fragments.barycentrics, barycentrics, rtol=0, atol=1e-5)
    np.testing.assert_allclose(fragments.depth, depth, rtol=0, atol=1e-5)
    return triangle


def soup(rng, triangles, low, high):
    vertices = rng.uniform(low, high, (3 * triangles, 3))
    return vertices, np.arange(3 * triangles, dtype=np.int32).reshape(-1, 3)


@pytest.mark.parametrize("seed", range(4))
def test_a_soup_that_reaches_beyond_the_picture(seed):
    size = (24, 40)
    vertices, faces = soup(np.random.default_rng(seed), 64, [-30, -20, -1], [70, 44, 1])
    # Half of them small and in front: around a place, some pixels wide.
    vertices[:96, 2] += 2
    vertices[96:] = np.repeat(vertices[96::3], 3, axis=0) + 0.15 * vertices[96:]
    triangle = assert_equals_brute_force(normalised(vertices, size), faces, size)
    assert len(np.unique(triangle)) > 8


@pytest.mark.parametrize("seed", range(4))
def test_sides_and_corners_on_pixel_centres_and_equal_depths(seed):
    """Legs of 4 and 8 pixels and whole depths: all arithmetic is exact, so every tie is a tie."""
    rng = np.random.default_rng(seed)
    size, pieces = (16, 32), []
    for leg, turn in ((4, 0), (8, 1), (4, 1)):
        x, y = np.meshgrid(np.arange(0, 32 + leg, leg), np.arange(0, 16 + leg, leg))
        z = rng.integers(-2, 3, x.shape)
        grid = np.arange(x.size).reshape(x.shape)
        a, b, c, d = (
            g.ravel() for g in (grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:])
        )
        halves = ((a, b, c), (d, c, b)) if turn else ((a, d, b), (c, d, a))
        faces = np.concatenate([np.stack(half, -1) for half in halves])
        pieces.append((np.stack([x, y, z], -1).reshape(-1, 3), faces))
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in pieces])
    vertices = np.concatenate([vertices for vertices, _ in pieces])
    faces = np.concatenate([f + start for (_, f), start in zip(pieces, starts, strict=False)])
    faces = np.concatenate([faces, faces])  # each a second time: the later never wins
    faces = faces[rng.permutation(len(faces))].astype(np.int32)
    triangle = assert_equals_brute_force(normalised(vertices, size), faces, size)
    assert (triangle >= 0).all()
    assert len(np.unique(triangle)) > 30


def test_of_equally_near_triangles_the_lowest_index_wins():
    size = (8, 8)
    square = [[-1, -1, 5], [9, -1, 5], [-1, 9, 5], [9, 9, 5]]
    faces = np.array([[0, 1, 2], [2, 1, 0], [3, 2, 1], [1, 2, 3], [1, 0, 2]], np.int32)
    triangle = assert_equals_brute_force(normalised(square, size), faces, size)
    assert set(np.unique(triangle)) == {0, 2}
    assert (np.diag(triangle[::-1]) == 0).all()  # the shared side


def test_what_has_no_area_or_lies_outside_draws_nothing():
    size = (16, 16)
    nothing = [
        [[3, 3, 0], [3, 3, 0], [9, 9, 0]],  # a repeated corner
        [[5, 5, 0], [5, 5, 0], [5, 5, 0]],
        [[0, 0, 0], [4, 4, 0], [8, 8, 0]],  # collinear, through pixel centres
        [[2, 7, 0], [6, 7, 0], [14, 7, 0]],
        [[-9, 2, 0], [-1, 4, 0], [-2, 9, 0]],  # left, right, above, below
        [[17, 2, 0], [90, 4, 0], [16, 9, 0]],
        [[2, -9, 0], [9, -1, 0], [5, -1, 0]],
        [[2, 16, 0], [9, 19, 0], [5, 99, 0]],
        [[2.25, 2.25, 0], [2.75, 2.25, 0], [2.5, 2.75, 0]],  # between pixel centres
        [[np.nan, 2, 0], [9, 1, 0], [5, 9, 0]],
        [[2, 2, np.nan], [9, 1, 0], [5, 9, 0]],
        [[np.inf, 2, 0], [9, 1, 0], [5, 9, 0]],
        [[2, -np.inf, 0], [9, 1, 0], [5, 9, 0]],
        [[1e30, 1e30, 0], [3e30, 1e30, 0], [1e30, 2e30, 0]],
    ]
    something = [[[-40, -40, 1], [100, -40, 1], [-40, 100, 1]], [[4, 4, 2], [9, 4, 0], [4, 9, 0]]]
    for triangles, want in ((nothing, {-1}), (nothing + something, {14, 15})):
        vertices = normalised(np.reshape(triangles, (-1, 3)), size)
        faces = np.arange(len(vertices), dtype=np.int32).reshape(-1, 3)
        triangle = assert_equals_brute_force(vertices, faces, size)
        assert set(np.unique(triangle)) == want


def test_many_triangles_that_each_cover_the_picture():
    """More windows than one turn of the loop takes, the nearest triangle among them anywhere."""
    size, rng = (64, 128), np.random.default_rng(0)
    assert 4 * rasterizer._PIXELS_PER_TURN < 40 * 64 * 128
    depths = rng.permutation(40)
    vertices = np.concatenate([[[-200, -9, z], [400, -90, z], [7, 900, z + 0.5]] for z in depths])
    faces = np.arange(120, dtype=np.int32).reshape(-1, 3)
    triangle = assert_equals_brute_force(normalised(vertices, size), faces, size)
    assert (triangle == np.argmin(depths)).all()


@pytest.mark.parametrize("seed", range(3))
def test_no_gap_between_triangles_that_share_a_side(seed):
    """A jittered, turned sheet over the whole picture, its sides at arbitrary numbers."""
    size, rng = (64, 64), np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-2, 2, 40), np.linspace(-2, 2, 40))
    grid = np.arange(x.size).reshape(x.shape)
    flat = np.stack([x, y], -1).reshape(-1, 2) + rng.uniform(-0.02, 0.02, (x.size, 2))
    angle = rng.uniform(0, 6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    vertices = np.concatenate([flat @ turn, rng.normal(size=(x.size, 1))], -1).astype(np.float32)
    a, b, c, d = (g.ravel() for g in (grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]))
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([b, d, c], -1)]).astype(np.int32)
    assert (drawn(vertices, faces, size=size).triangle >= 0).all()


def test_no_gap_where_rounding_decides():
    """Large triangles on either side of a side that meets the one pixel but for rounding."""
    rng = np.random.default_rng(0)
    along = rng.uniform(-300, 300, (512, 2))
    back = -along * rng.uniform(0.1, 0.9, (512, 1))
    across = along[:, ::-1] * [-1, 1]
    vertices = np.pad(np.stack([along, back, across, -across], 1), ((0, 0), (0, 0), (0, 1)))
    faces = np.int32([[0, 1, 2], [1, 0, 3]])
    draw = jax.jit(jax.vmap(lambda v: rasterize(v, faces, (1, 1)).triangle))
    triangles = draw(vertices.astype(np.float32))
    assert (triangles >= 0).all()
    assert 100 < (triangles == 0).sum() < 412


def test_a_batch_equals_one_by_one():
    vertices, faces = ball(12, 17)
    size = (32, 48)
    scaled = np.stack([vertices * scale for scale in (0.2, 1.0, 3.0)])
    scaled[1] += np.float32(0.7)
    many = jax.jit(jax.vmap(lambda v: rasterize(v, faces, size)))(scaled)
    for index, one in enumerate(scaled):
        assert_equals_brute_force(one, faces, size)
        for got, want in zip(many, drawn(one, faces, size=size), strict=True):
            np.testing.assert_allclose(got[index], want, rtol=0, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        vertices, faces = ball(5, 7)
        vertices = jnp.asarray(vertices, jnp.float64)
        attributes = jnp.asarray(np.random.default_rng(0).normal(size=vertices.shape))

        @jax.jit
        def outputs(vertices, attributes):
            fragments = rasterize(vertices, faces, (12, 16))
            depth = jnp.where(fragments.triangle >= 0, fragments.depth, 0.0)
            return depth, interpolate(fragments, faces, attributes)

        check_grads(outputs, (vertices, attributes), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("most", [20, 1])
def test_windows_grow_where_their_number_could_not_be_counted(monkeypatch, most):
    monkeypatch.setattr(rasterizer, "_MOST_WINDOWS", 30 * most)
    size = (24, 40)
    vertices, faces = soup(np.random.default_rng(0), 30, [-30, -20, -1], [70, 44, 1])
    projected = normalised(vertices, size)
    triangle = jax.jit(lambda v: rasterize(v, faces, size).triangle)(projected)
    np.testing.assert_array_equal(triangle, reference.rasterize(projected, faces, size)[0])
