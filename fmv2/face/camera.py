"""Where a vertex falls in the picture: DECA's scaled-orthographic camera and its crop.

Normalised coordinates run from -1 to 1 over the picture, x to the right, y down, and z away from
the viewer. The centre of the pixel in column c of W lies at (2c + 1)/W - 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

CROP_SIZE = 224
"""Side in pixels of the crop that DECA's camera belongs to."""


def project(vertices: Float[Array, "v 3"], camera: Float[Array, "3"]) -> Float[Array, "v 3"]:
    """Vertices in normalised coordinates of the crop.

    Args:
      vertices: in the world, +y up and +z towards the viewer.
      camera: scale s, then translation t: xy' = s·(xy + t), z' = s·z; y and z change sign.
    Source: Feng et al. 2021 (DECA).
    """
    scale, shift = camera[:1], jnp.concatenate([camera[1:], jnp.zeros(1)])
    return (scale * jnp.array([1.0, -1.0, -1.0]))[None] * (vertices + shift[None])


def crop_to_image(
    projected: Float[Array, "v 3"], image_from_crop: Float[Array, "2 3"], size: tuple[int, int]
) -> Float[Array, "v 3"]:
    """Normalised coordinates of the crop to those of the image it was cut from; z stays.

    Args:
      projected: in the crop, as `project` gives them.
      image_from_crop: similarity from crop to image in pixels, measured from the corner (the first
        pixel's centre is at one half).
      size: the image's height and width in pixels.
    """
    height, width = size
    in_crop = (projected[:, :2] + 1) * (CROP_SIZE / 2)
    in_image = jnp.matmul(in_crop, image_from_crop[:, :2].T, precision="highest")
    extent = jnp.array([width, height], projected.dtype)
    normalised = (in_image + image_from_crop[:, 2][None]) * (2 / extent)[None] - 1
    return jnp.concatenate([normalised, projected[:, 2:]], axis=-1)


def to_pixels(normalised: Float[Array, "v c"], size: tuple[int, int]) -> Float[Array, "v 2"]:
    """The pixel coordinates x, y of normalised ones; pixel centres lie at whole numbers."""
    height, width = size
    extent = jnp.array([[width, height]], normalised.dtype)
    return ((normalised[:, :2] + 1) * extent - 1) / 2
