"""Light on shape: vertex normals and nine spherical harmonics, the shading of DECA's renderer.

The light's coefficients and constants: Ramamoorthi and Hanrahan 2001, in DECA's order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ALBEDO = 180 / 255
FACING_LIMIT = 0.15
"""z of a normal in the picture above which its surface counts as turned away."""

BASIS_SCALES = (0.282095, *[1.023327] * 3, *[0.858086] * 3, 0.429043, 0.247708)

BASIS_POWERS = tuple(
    scale**2 * square
    for scale, square in zip(
        BASIS_SCALES, (1, *[1 / 3] * 3, *[1 / 15] * 3, 4 / 15, 4 / 5), strict=True
    )
)
"""Mean square of each basis function, with its scale, over all directions. Any two are orthogonal:
what a light's coefficients add to the mean square of what falls on surfaces is theirs alone."""


def vertex_normals(vertices: Float[Array, "v 3"], faces: Int[Array, "f 3"]) -> Float[Array, "v 3"]:
    """Unit normals: the sum over each vertex's triangles, weighted by area; zero where none is."""
    corners = vertices[faces]
    face_normals = jnp.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = jnp.zeros_like(vertices)
    for corner in range(3):
        sums = sums.at[faces[:, corner]].add(face_normals)
    # Squares of areas in square metres are near float32's smallest: scaled up before, and bounded
    # below so that the gradient at zero is zero.
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(sums)), axis=-1, keepdims=True)
    sums = sums / jnp.where(largest > 0, largest, 1.0)
    squared = jnp.sum(sums**2, axis=-1, keepdims=True)
    return sums * jax.lax.rsqrt(jnp.maximum(squared, 0.5))


def shade(normals: Float[Array, "h w 3"], light: Float[Array, "9 3"]) -> Float[Array, "h w 3"]:
    """RGB in [0, 1] of a grey surface: albedo times Σ light·basis, clamped.

    Args:
      normals: in the world; they need not be of unit length.
      light: per basis [1, x, y, z, xy, xz, yz, x² - y², 3z² - 1] an RGB coefficient.
    """
    x, y, z = jnp.moveaxis(normals, -1, 0)
    basis = [jnp.ones_like(x), x, y, z, x * y, x * z, y * z, x**2 - y**2, 3 * z**2 - 1]
    scaled = light * jnp.array(BASIS_SCALES, light.dtype)[:, None]
    # Term by term, which is one loop over the pixels; as a product of matrices the basis is stored.
    irradiance = jnp.zeros_like(normals)
    for values, color in zip(basis, scaled, strict=True):
        irradiance += values[..., None] * color[None, None]
    return jnp.clip(ALBEDO * irradiance, 0, 1)


def faces_viewer(projected_normals: Float[Array, "h w 3"]) -> Bool[Array, "h w"]:
    """Whether a surface is seen from its front; normals are those of the projected vertices."""
    return projected_normals[..., 2] < FACING_LIMIT
