"""Packed convolutions are the same convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmv2.models.packing import pack, packed_conv


@pytest.mark.parametrize(("block", "stride"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_a_packed_convolution_and_its_gradients_are_the_plain_ones(block, stride):
    conv = nnx.Conv(3, 5, (3, 3), strides=stride, padding=1, rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.arange(5.0)
    graph, weights = nnx.split(conv)
    x = jax.random.normal(jax.random.key(1), (2, 16, 24, 3))

    def plain(weights, x):
        return pack(nnx.merge(graph, weights)(x), block // stride)

    def packed(weights, x):
        y, after = packed_conv(nnx.merge(graph, weights), pack(x, block), block)
        assert after == block // stride
        return y

    def with_gradients(function):
        made, back = jax.vjp(function, weights, x)
        return made, back(jnp.cos(made))

    for ours, theirs in zip(
        *(jax.tree.leaves(with_gradients(f)) for f in (packed, plain)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.abs(theirs).max()))


def test_a_square_is_its_pixels_by_row_column_and_channel():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    packed = pack(x, 2)
    assert packed.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(packed[1, 0, 2], x[1, 0:2, 4:6].ravel())
