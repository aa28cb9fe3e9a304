"""Which triangle each pixel sees: a z-buffer with static shapes, exact for every mesh.

Each triangle's bounding box is cut into windows of 4×4 pixels. The windows of all triangles form
one list, a few per triangle of a head; a loop takes a fixed number of them per turn, computes their
pixels densely and scatters depth, then index, into the picture. So shapes are static and work
follows the covered area, while a triangle may be as large as it likes.

The choice of triangle is not differentiated. Barycentrics and depth are computed again from the
vertices of the chosen triangle, and carry the gradient.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fmv2.face.camera import to_pixels

_SMALLEST_WINDOW = 4
_PIXELS_PER_TURN = 65536
_MOST_WINDOWS = 2**30  # counted in int32, with room for the last turn
_NO_TRIANGLE = jnp.iinfo(jnp.int32).max


class Fragments(NamedTuple):
    """What each pixel sees. Barycentrics are zero and depth is infinite where nothing is."""

    triangle: Int[Array, "h w"]
    """Index into the faces; -1 where nothing is."""
    barycentrics: Float[Array, "h w 3"]
    depth: Float[Array, "h w"]


def rasterize(
    projected: Float[Array, "v 3"], faces: Int[Array, "f 3"], size: tuple[int, int]
) -> Fragments:
    """The nearest triangle at each pixel's centre, edges included; no culling, no perspective.

    Of triangles equally near, the one with the lowest index wins. Two triangles that share an edge
    leave no gap along it. Triangles without area or with a vertex that is not finite draw nothing.

    Args:
      projected: normalised coordinates, see `fmv2.face.camera`; a smaller z is nearer.
      faces: triangles, wound either way.
      size: height and width in pixels.
    """
    height, width = size
    pixels = jnp.concatenate([to_pixels(projected, size), projected[:, 2:]], axis=-1)
    corners = pixels[faces]
    triangle = _nearest(lax.stop_gradient(corners), size)

    covered = triangle >= 0
    # Any triangle with area keeps the pixels that see nothing from dividing by zero.
    spare = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], corners.dtype)
    seen = jnp.stack([corners[:, corner][triangle] for corner in range(3)])
    seen = jnp.where(covered[None, ..., None], seen, spare[:, None, None])
    seen = jnp.moveaxis(seen, -1, 1)
    x = jnp.arange(width, dtype=corners.dtype)[None]
    y = jnp.arange(height, dtype=corners.dtype)[:, None]
    edges = _edges(seen, x, y)
    area = jnp.sum(edges, axis=0)
    # A sliver may round to no area here though it had some when it was chosen.
    barycentrics = edges / jnp.where(area == 0, 1.0, area)[None]
    return Fragments(
        triangle,
        jnp.where(covered[..., None], jnp.moveaxis(barycentrics, 0, -1), 0.0),
        jnp.where(covered, _depth(seen[:, 2], barycentrics), jnp.inf),
    )


def interpolate(
    fragments: Fragments, faces: Int[Array, "f 3"], attributes: Float[Array, "v c"]
) -> Float[Array, "h w c"]:
    """Vertex attributes at each pixel, by its barycentrics; zero where nothing is."""
    # Corner by corner: XLA gathers short rows on CPU ten times as fast as whole triangles.
    parts = [
        attributes[faces[:, corner]][fragments.triangle] * fragments.barycentrics[..., corner, None]
        for corner in range(3)
    ]
    return parts[0] + parts[1] + parts[2]


def _nearest(corners: Float[Array, "f 3 3"], size: tuple[int, int]) -> Int[Array, "h w"]:
    """The index of the nearest triangle at each pixel, -1 where none is."""
    height, width = size
    side, most = _window_side(len(corners), size)
    limits = jnp.array([[width, height]], corners.dtype)
    first = jnp.clip(jnp.ceil(jnp.min(corners[..., :2], axis=1)), 0, limits).astype(jnp.int32)
    last = jnp.clip(jnp.floor(jnp.max(corners[..., :2], axis=1)), -1, limits - 1).astype(jnp.int32)
    across, down = (jnp.maximum(last - first + side, 0) // side).T
    counts = jnp.where(jnp.isfinite(corners).all(axis=(1, 2)), across * down, 0)
    ends = jnp.cumsum(counts)

    per_turn = min(max(_PIXELS_PER_TURN // side**2, 1), most)
    offset = jnp.arange(side**2, dtype=jnp.int32)[:, None]
    dropped = height * width  # beyond the picture

    def fragments(start):
        """Pixel, depth and triangle of the windows from `start` on."""
        window = start + jnp.arange(per_turn, dtype=jnp.int32)
        # In a loop: unrolled, its steps fuse, and jax 0.11 compiles that for 80 s on CPU.
        triangle = jnp.searchsorted(ends, window, side="right", method="scan")
        triangle = jnp.minimum(triangle, len(corners) - 1)
        place = window - (ends - counts)[triangle]
        row, column = jnp.divmod(place, jnp.maximum(across[triangle], 1))
        # Windows along the last axis, the lanes of a TPU.
        x = (first[triangle, 0] + side * column)[None] + offset % side
        y = (first[triangle, 1] + side * row)[None] + offset // side
        of_window = jnp.moveaxis(corners[triangle], 0, -1)[:, :, None]
        edges = _edges(of_window, x.astype(corners.dtype), y.astype(corners.dtype))
        area = jnp.sum(edges, axis=0)
        inside = (edges >= 0).all(axis=0) | (edges <= 0).all(axis=0)
        inside &= (area != 0) & (window < ends[-1])[None]
        inside &= (x <= last[triangle, 0][None]) & (y <= last[triangle, 1][None])
        z = _depth(of_window[:, 2], edges / jnp.where(inside, area, 1.0)[None])
        return jnp.where(inside, y * width + x, dropped), z, triangle

    def turn(state):
        # Draws what the turn before has computed: a loop's state lies in memory, so the depth that
        # is scattered and the depth that is compared with it are the same bits. Computed here, the
        # compiler may do it twice and round differently.
        start, depth, nearest, (pixel, z, triangle) = state
        nearer = depth.at[pixel].min(z, mode="drop")
        nearest = jnp.where(nearer < depth, _NO_TRIANGLE, nearest)
        is_nearest = z == nearer.at[pixel].get(mode="fill", fill_value=jnp.nan)
        claim = jnp.where(is_nearest, triangle[None], _NO_TRIANGLE)
        nearest = nearest.at[pixel].min(claim, mode="drop")
        return start + per_turn, nearer, nearest, fragments(start)

    depth = jnp.full(height * width, jnp.inf, corners.dtype)
    nearest = jnp.full(height * width, _NO_TRIANGLE, jnp.int32)
    state = (jnp.int32(per_turn), depth, nearest, fragments(jnp.int32(0)))
    _, _, nearest, _ = lax.while_loop(lambda s: s[0] - per_turn < ends[-1], turn, state)
    return jnp.where(nearest == _NO_TRIANGLE, -1, nearest).reshape(size)


def _window_side(triangles: int, size: tuple[int, int]) -> tuple[int, int]:
    """Side of the windows in pixels, and their number if every triangle fills the picture."""
    side = _SMALLEST_WINDOW
    while True:
        most = triangles * math.ceil(size[0] / side) * math.ceil(size[1] / side)
        if most <= _MOST_WINDOWS:
            return side, most
        side *= 2


def _edges(corners: Float[Array, "3 3 ..."], x: Array, y: Array) -> Float[Array, "3 ..."]:
    """Twice the area of the pixel's triangle with each side, in the order of the facing corners."""
    sides = ((1, 2), (2, 0), (0, 1))
    return jnp.stack([_edge(corners[a], corners[b], x, y) for a, b in sides])


def _edge(a: Float[Array, "3 ..."], b: Float[Array, "3 ..."], x: Array, y: Array) -> Array:
    # Always from the same end: two triangles that share a side then get the same number with
    # opposite signs, so that every pixel along it falls to at least one of them.
    swap = (b[0] < a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    from_x, to_x = jnp.where(swap, b[0], a[0]), jnp.where(swap, a[0], b[0])
    from_y, to_y = jnp.where(swap, b[1], a[1]), jnp.where(swap, a[1], b[1])
    doubled = (to_x - from_x) * (y - from_y) - (to_y - from_y) * (x - from_x)
    return jnp.where(swap, -doubled, doubled)


def _depth(z: Float[Array, "3 ..."], barycentrics: Float[Array, "3 ..."]) -> Array:
    # Differences, so that a triangle parallel to the picture has exactly one depth.
    return z[0] + barycentrics[1] * (z[1] - z[0]) + barycentrics[2] * (z[2] - z[0])
