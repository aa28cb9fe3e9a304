"""ShadingNet against diffusers' ControlNetModel on random weights."""

from functools import partial

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert import engine
from convert.tables import shadingnet as shadingnet_table
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.shadingnet import ShadingNet, ShadingNetConfig
from fmv2.models.unet import UNetConfig
from tests.fmv2.models import test_unet
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

TINY = UNetConfig.tiny()


def pair(unet: UNetConfig, **options) -> tuple[diffusers.ControlNetModel, ShadingNet]:
    """diffusers' net with random weights, and ours with the same."""
    config = ShadingNetConfig.for_unet(unet)
    theirs = randomize_(diffusers.ControlNetModel.from_config(config.to_config()), seed=7)
    net = abstract(ShadingNet, config, **options)
    table = shadingnet_table.table(config)
    return theirs, engine.load(net, refs(theirs.state_dict()), table, name="shadingnet")


@partial(jax.jit, static_argnames="start")
def fresh_net(unet, start="published"):
    """Compiled, so that no weight is drawn that the U-Net's then replace."""
    return ShadingNet.from_unet(unet, rngs=nnx.Rngs(0), start=start)


def shading_map(height=128, width=128):
    return jnp.abs(test_unet.normal(2, height, width, 3, seed=5))


@pytest.mark.parametrize(
    ("name", "height", "width", "scale", "attention"),
    [("sd1", 16, 16, 0.5, "auto"), ("sd2", 8, 24, 1.0, "auto"), ("sd2", 8, 24, 1.0, "pallas")],
)
def test_the_net_equals_diffusers(name, height, width, scale, attention):
    """Also as a TPU has it, which packs the embedding; so few tokens need no kernel."""
    config = test_unet.VARIANTS[name]
    theirs, ours = pair(config, attention=attention)
    latents, timesteps, _ = test_unet.inputs(config, height, width)
    tokens = test_unet.normal(2, 4, config.cross_attention_dim, seed=2)
    shading = shading_map(8 * height, 8 * width)
    with torch.no_grad():
        down, mid = theirs(
            *test_unet.torch_inputs(latents, timesteps, tokens),
            to_nchw(shading),
            scale,
            return_dict=False,
        )
    actual = jax.jit(lambda net, *args: net(*args))(
        ours, latents, timesteps, tokens, shading, scale
    )
    assert len(actual.down) == len(down) == 12
    for ours_, theirs_ in zip((*actual.down, actual.mid), (*down, mid), strict=True):
        assert relative_error(ours_, to_nhwc(theirs_)) <= 1e-4


@pytest.mark.parametrize(("attention", "side"), [("xla", 128), ("pallas", 32)])
def test_a_tpus_program_has_no_convolution_of_the_whole_map(attention, side):
    """Of few channels it would fill no lanes."""
    graph, weights = nnx.split(pair(TINY, attention=attention)[1])
    latents, timesteps, _ = test_unet.inputs(TINY)

    def net(weights):
        tokens = test_unet.normal(2, 4, 32)
        return nnx.merge(graph, weights)(latents, timesteps, tokens, shading_map())

    program = jax.make_jaxpr(net)(weights).jaxpr
    found = [eqn for eqn in program.eqns if eqn.primitive.name == "conv_general_dilated"]
    assert max(eqn.invars[0].aval.shape[1] for eqn in found) == side


@pytest.mark.parametrize("start", ["published", "quick"])
def test_a_fresh_net_is_the_unets_half_and_adds_nothing(start):
    theirs, unet = test_unet.pair(TINY)
    fresh = fresh_net(unet, start=start)
    expected = diffusers.ControlNetModel.from_unet(theirs).state_dict()
    actual = dict(engine.dump(fresh, shadingnet_table.table(fresh.config)))
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        if not key.startswith("controlnet_cond_embedding."):  # random on both sides
            np.testing.assert_array_equal(value, expected[key].numpy(), err_msg=key)
    hears = np.any(actual["controlnet_cond_embedding.conv_out.weight"])
    assert hears == (start == "quick")
    latents, timesteps, _ = test_unet.inputs(TINY)
    tokens = test_unet.normal(2, 4, 32)
    residuals = jax.jit(lambda net, *args: net(*args))(
        fresh, latents, timesteps, tokens, shading_map()
    )
    assert not any(np.any(r) for r in jax.tree.leaves(residuals))


def test_masters_of_a_half_precision_base_are_float32():
    unet = test_unet.pair(TINY)[1]
    graph, state = nnx.split(unet)
    half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    fresh = fresh_net(half)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(fresh))} == {jnp.dtype("float32")}


def test_the_size_of_sd15():
    config = ShadingNetConfig.for_unet(UNetConfig.sd15())
    net = abstract(ShadingNet, config)
    shapes = engine.torch_shapes(net, shadingnet_table.table(config))
    assert len(shapes) == 340
    assert sum(int(np.prod(s)) for s in shapes.values()) == 361_279_120


def test_config_survives_the_way_to_diffusers_and_back():
    config = ShadingNetConfig.for_unet(TINY)
    theirs = diffusers.ControlNetModel.from_config(config.to_config())
    assert ShadingNetConfig.from_config(theirs.config) == config


def test_config_refuses_foreign_arithmetic():
    config = ShadingNetConfig.for_unet(TINY).to_config()
    with pytest.raises(UserError, match="channel_order='bgr' is not supported, only 'rgb'; global"):
        ShadingNetConfig.from_config(
            config
            | {"controlnet_conditioning_channel_order": "bgr", "global_pool_conditions": True}
        )


def test_a_shading_map_of_another_size_is_refused():
    net = pair(TINY)[1]
    latents, timesteps, _ = test_unet.inputs(TINY)
    with pytest.raises(
        ValueError, match=r"\(128, 128\) pixels for latents of \(16, 16\), got \(64"
    ):
        net(latents, timesteps, test_unet.normal(2, 4, 32), shading_map(64, 64))


def test_the_embedding_is_as_narrow_as_the_unet():
    def widths(unet):
        return ShadingNetConfig.for_unet(unet).conditioning_embedding_out_channels

    assert widths(UNetConfig.sd15()) == (16, 32, 96, 256)
    assert widths(UNetConfig.embedded()) == (8, 8, 24, 56)
