"""Convolutions over squares of pixels, packed into the channels of one.

A TPU multiplies 128 channels as fast as 16, and lays out 16 as if they were 128. Where a large map
has few channels, each square of `block` × `block` pixels becomes one pixel of block² as many, and a
3×3 convolution a sparse one over those: more products, nearly all with zeros, in a fraction of the
time. On other machines it would only be more products.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def pack(x: Float[Array, "b h w c"], block: int) -> Float[Array, "b i j d"]:
    """Each square of pixels as the channels of one: row, column, channel."""
    batch, height, width, channels = x.shape
    rows, columns = height // block, width // block
    squares = x.reshape(batch, rows, block, columns, block, channels).swapaxes(2, 3)
    return squares.reshape(batch, rows, columns, block * block * channels)


def packed_conv(
    conv: nnx.Conv, x: Float[Array, "b i j c"], block: int
) -> tuple[Float[Array, "b i j d"], int]:
    """What a convolution makes of a packed map, packed, and the block of that.

    Args:
      conv: 3×3, one pixel of padding on each side, a stride that divides the block.
      x: as `pack` makes it.
      block: side of its squares.
    """
    strides = conv.strides or 1
    stride = strides if isinstance(strides, int) else strides[0]
    after = block // stride
    dtype = conv.dtype or jnp.result_type(x, conv.kernel)
    taps = jnp.asarray(_taps(block, stride), dtype)
    kernel = conv.kernel[...].astype(dtype)
    kernel = jnp.einsum("uior,vjps,rscd->uvijcopd", taps, taps, kernel)
    inner, outer = kernel.shape[4], kernel.shape[7]
    reach = len(taps)
    y = jax.lax.conv_general_dilated(
        x.astype(dtype),
        kernel.reshape(reach, reach, block * block * inner, after * after * outer),
        window_strides=(1, 1),
        padding=((1, reach - 2),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert conv.bias is not None
    bias = jnp.tile(conv.bias[...].astype(dtype), after * after)
    return y + bias.reshape(1, 1, 1, -1), after


def _taps(block: int, stride: int) -> Float[np.ndarray, "u i o r"]:
    """1 where a square of the map, u - 1 from that of the output, has at its i-th pixel what the
    kernel's r-th tap reads for the o-th pixel of the output's square; along one side."""
    reads = stride * np.arange(block // stride)[:, None] + np.arange(3) - 1
    reach = 2 + reads.max() // block
    pixels = block * (np.arange(reach) - 1)[:, None] + np.arange(block)
    return (pixels[:, :, None, None] == reads).astype(np.float32)
