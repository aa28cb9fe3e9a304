"""Large images in overlapping tiles: the activations of one tile in memory at a time."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Share of a tile that it has in common with its neighbour, diffusers' own.
_OVERLAP = 0.25


def decode_tiles(
    decode: Callable[[Float[Array, "b h w c"]], Float[Array, "b H W d"]],
    latents: Float[Array, "b h w c"],
    tile: int,
    upscale: int,
) -> Float[Array, "b H W d"]:
    """Decodes tile by tile; each one's first rows and columns fade in over its finished neighbours.

    Args:
      decode: latents to an image `upscale` times their size.
      latents: of any size.
      tile: side of a tile, in latents.
      upscale: pixels per latent, along either side.
    Source: equals the tiled decoding of diffusers' `AutoencoderKL`.
    """
    step = int(tile * (1 - _OVERLAP))
    seam = int(tile * upscale * _OVERLAP)
    kept = tile * upscale - seam
    rows, columns = (range(0, side, step) for side in latents.shape[1:3])

    # The tiles at the far edges are smaller. Those of one shape share one loop: the activations of
    # one are in memory at a time, and the program does not grow with the image.
    by_shape: dict[tuple[int, ...], dict[tuple[int, int], jax.Array]] = {}
    for place in itertools.product(rows, columns):
        cut = latents[:, place[0] : place[0] + tile, place[1] : place[1] + tile]
        by_shape.setdefault(cut.shape, {})[place] = cut
    images: dict[tuple[int, int], jax.Array] = {}
    for cuts in by_shape.values():
        images.update(zip(cuts, jax.lax.map(decode, jnp.stack(list(cuts.values()))), strict=True))

    for top, left in itertools.product(rows, columns):
        image = images[top, left]
        if top:
            image = _fade(images[top - step, left], image, seam, axis=1)
        if left:
            image = _fade(images[top, left - step], image, seam, axis=2)
        images[top, left] = image
    strips = [
        jnp.concatenate([images[top, left][:, :kept, :kept] for left in columns], axis=2)
        for top in rows
    ]
    return jnp.concatenate(strips, axis=1)


def _fade(before: jax.Array, after: jax.Array, extent: int, *, axis: int) -> jax.Array:
    """`after`, its first `extent` rows or columns going over linearly from the last of `before`."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    weight = jnp.expand_dims(jnp.arange(extent) / extent, [a for a in range(4) if a != axis])
    last = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    first, rest = jnp.split(after, [extent], axis=axis)
    seam = last + (first - last) * weight.astype(after.dtype)
    return jnp.concatenate([seam, rest], axis=axis)
