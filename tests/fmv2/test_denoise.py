"""Where pictures look, told by maps of attention whose answer is known."""

import jax.numpy as jnp
import numpy as np

from fmv2.denoise import phrase_maps


def test_phrases_see_their_tokens_maps():
    """The second phrase's token is seen by one query alone."""
    attention = jnp.zeros((1, 16, 77)).at[:, 5, 3].set(0.5).at[:, :, 1].set(0.25)
    token_mask = jnp.zeros((1, 2, 77), bool).at[0, 0, 1].set(True).at[0, 1, 3].set(True)
    maps = phrase_maps(attention, token_mask)
    assert maps.shape == (1, 2, 4, 4)
    np.testing.assert_array_equal(maps[0, 0], np.ones((4, 4)))
    expected = np.zeros((4, 4))
    expected[1, 1] = 1
    np.testing.assert_array_equal(maps[0, 1], expected)
