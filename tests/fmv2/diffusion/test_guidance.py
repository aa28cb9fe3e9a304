"""Classifier-free guidance and its rescale against diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from fmv2.diffusion.guidance import guide
from tests.parity import relative_error


def outputs(shape=(3, 8, 8, 4)):
    # Each image has a spread of its own, which only a rescale per image restores.
    spread = np.arange(1, 4).reshape(3, 1, 1, 1)
    return (np.random.standard_normal((2, *shape)) * spread).astype(np.float32)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_equals_diffusers(scale, rescale):
    unconditional, conditional = outputs()
    u, c = torch.from_numpy(unconditional), torch.from_numpy(conditional)
    expected = rescale_noise_cfg(u + scale * (c - u), c, guidance_rescale=rescale)
    guided = guide(unconditional, conditional, scale=scale, rescale=rescale)
    assert relative_error(guided, expected) < 1e-6


def test_full_rescale_has_the_spread_of_the_conditional_output():
    unconditional, conditional = outputs()
    guided = guide(unconditional, conditional, scale=7.5, rescale=1.0)
    per_image = (1, 2, 3)
    np.testing.assert_allclose(
        np.std(guided, axis=per_image), np.std(conditional, axis=per_image), rtol=1e-5
    )


def test_narrow_outputs_are_guided_in_float32():
    unconditional, conditional = (jnp.asarray(x, jnp.bfloat16) for x in outputs())
    guided = guide(unconditional, conditional, scale=7.5)
    expected = guide(unconditional.astype(jnp.float32), conditional.astype(jnp.float32), scale=7.5)
    np.testing.assert_array_equal(guided, expected, strict=True)


def test_refuses_outputs_of_different_shape():
    unconditional, conditional = outputs()
    with pytest.raises(ValueError, match="unconditional and conditional must agree in shape"):
        guide(unconditional[:1], conditional, scale=7.5)
