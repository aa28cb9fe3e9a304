"""The U-Net against diffusers' UNet2DConditionModel on random weights."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

from convert import engine
from convert.tables import unet as unet_table
from fmv2.errors import UserError
from fmv2.models.unet import Residuals, UNet, UNetConfig

VARIANTS = {
    "sd1": UNetConfig.tiny(),
    "sd2": dataclasses.replace(
        UNetConfig.tiny(), num_heads=(1, 2, 4, 4), use_linear_projection=True, cross_attention_dim=48
    ),
    "plain levels": dataclasses.replace(
        UNetConfig.tiny(),
        block_out_channels=(16, 32, 32),
        cross_attention=(False, True, False),
        num_heads=(1, 2, 4),
        layers_per_block=1,
        norm_num_groups=8,
    ),
}


def pair(config: UNetConfig, seed: int = 0) -> tuple[torch.nn.Module, UNet]:
    """diffusers' net with random weights, and ours with the same."""
    theirs = randomize_(diffusers.UNet2DConditionModel.from_config(config.to_config()), seed)
    net = nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0)))
    return theirs, engine.load(net, refs(theirs.state_dict()), unet_table.table(config), name="unet")


def inputs(config: UNetConfig, height: int = 16, width: int = 16, batch: int = 2):
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((batch, height, width, config.in_channels), np.float32)
    context = rng.standard_normal((batch, 7, config.cross_attention_dim), np.float32)
    return jnp.asarray(latents), jnp.asarray([3, 981][:batch]), jnp.asarray(context)


def torch_inputs(latents, timesteps, context):
    return to_nchw(latents), torch.tensor(np.array(timesteps)), torch.tensor(np.array(context))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (10, 14)])
def test_the_net_equals_diffusers(name, height, width):
    theirs, ours = pair(VARIANTS[name])
    given = inputs(VARIANTS[name], height, width)
    with torch.no_grad():
        expected = theirs(*torch_inputs(*given)).sample
    actual = jax.jit(lambda net, *args: net(*args).noise)(ours, *given)
    print(relative_error(actual, to_nhwc(expected)))
    assert relative_error(actual, to_nhwc(expected)) <= 1e-4
