"""The aligned face: a similarity that brings five landmarks onto ArcFace's template.

Points are x, y in pixels, pixel centres at whole numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CROP = 112
"""Side in pixels of the face that ArcFace sees."""

TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    np.float32,
)
"""Where the five landmarks lie in it: eyes, nose tip, mouth corners, from the picture's left."""


def similarity(source: Float[Array, "n 2"], target: Float[Array, "n 2"]) -> Float[Array, "2 3"]:
    """The rotation, scale and shift (no mirror image) that bring source nearest to target.

    Source: Umeyama 1991. In the plane it is linear least squares over complex numbers.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    (x, y), (u, v) = (source - source_mean[None]).T, (target - target_mean[None]).T
    spread = jnp.sum(x * x + y * y)
    a, b = jnp.sum(x * u + y * v) / spread, jnp.sum(x * v - y * u) / spread
    turn = jnp.array([[a, -b], [b, a]])
    shift = target_mean - jnp.matmul(turn, source_mean, precision="highest")
    return jnp.concatenate([turn, shift[:, None]], axis=1)


def crop_face(
    image: Float[Array, "h w c"], landmarks: Float[Array, "5 2"], size: int = CROP
) -> Float[Array, "size size c"]:
    """The face as ArcFace sees it, bilinear and black beyond the picture; linear in the image.

    Args:
      image: any range.
      landmarks: in its pixels, in ArcFace's order.
      size: side of the crop in pixels; the template grows with it.
    """
    # Sizes are compared from the picture's corner, half a pixel before the first centre.
    template = (jnp.asarray(TEMPLATE) + 0.5) * (size / CROP) - 0.5
    image_from_crop = similarity(template, landmarks)
    rows, columns = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    at = jnp.stack([columns.ravel(), rows.ravel(), jnp.ones(size * size)]).astype(jnp.float32)
    x, y = jnp.matmul(image_from_crop, at, precision="highest")

    def sample(channel):
        return jax.scipy.ndimage.map_coordinates(channel, [y, x], order=1, cval=0.0)

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image).reshape(size, size, -1)
