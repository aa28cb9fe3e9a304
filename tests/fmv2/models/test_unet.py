"""The U-Net against diffusers' UNet2DConditionModel on random weights, whole and block by block."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from flax import nnx

from convert import engine
from convert.tables import unet as unet_table
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.transformer import Given
from fmv2.models.unet import Residuals, UNet, UNetConfig
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

TINY = UNetConfig.tiny()
VARIANTS = {
    "sd1": TINY,
    "sd2": dataclasses.replace(
        TINY, num_heads=(1, 2, 4, 4), use_linear_projection=True, cross_attention_dim=48
    ),
    "one attending level": dataclasses.replace(
        TINY,
        block_out_channels=(16, 32, 32),
        cross_attention=(False, True, False),
        num_heads=(1, 2, 4),
        layers_per_block=1,
        norm_num_groups=8,
    ),
}


def pair(config: UNetConfig, seed: int = 0) -> tuple[diffusers.UNet2DConditionModel, UNet]:
    """diffusers' net with random weights, and ours with the same."""
    theirs = randomize_(diffusers.UNet2DConditionModel.from_config(config.to_config()), seed)
    net = abstract(UNet, config)
    return theirs, engine.load(
        net, refs(theirs.state_dict()), unet_table.table(config), name="unet"
    )


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def inputs(config: UNetConfig, height: int = 16, width: int = 16):
    latents = normal(2, height, width, config.in_channels)
    return latents, jnp.asarray([3, 981]), normal(2, 7, config.cross_attention_dim, seed=1)


def as_torch(x):
    return torch.tensor(np.array(x))


def torch_inputs(latents, timesteps, context):
    return to_nchw(latents), as_torch(timesteps), as_torch(context)


@pytest.fixture(scope="module")
def sd1():
    return pair(TINY)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_net_equals_diffusers(name):
    theirs, ours = pair(VARIANTS[name])
    given = inputs(VARIANTS[name])
    with torch.no_grad():
        expected = theirs(*torch_inputs(*given)).sample
    actual = jax.jit(lambda net, *args: net(*args).noise)(ours, *given)
    assert relative_error(actual, to_nhwc(expected)) <= 1e-4


def test_latents_of_any_shape_equal_diffusers(sd1):
    """Odd maps on the way down: 10 → 5 → 3 → 2 rows, and back."""
    theirs, ours = sd1
    given = inputs(TINY, 10, 14)
    with torch.no_grad():
        expected = theirs(*torch_inputs(*given)).sample
    actual = jax.jit(lambda net, *args: net(*args).noise)(ours, *given)
    assert relative_error(actual, to_nhwc(expected)) <= 1e-4


class Recorder(AttnProcessor):
    """diffusers' explicit attention, that keeps the probabilities."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(to(x))
            for to, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        self.seen = attn.get_attention_scores(query, key)
        return attn.to_out[0](attn.batch_to_head_dim(self.seen @ value))


def test_maps_and_residuals_equal_diffusers():
    theirs, ours = pair(TINY)
    given = inputs(TINY)
    layers = TINY.attention_layers()
    processors = {f"{layer.path}.processor": Recorder() for layer in layers}
    theirs.set_attn_processor(dict(processors))
    shapes = [(16, 32)] * 3 + [(8, 32)] + [(8, 64)] * 2 + [(4, 64)] * 3 + [(2, 64)] * 3
    residuals = Residuals(
        tuple(normal(2, s, s, c, seed=i) for i, (s, c) in enumerate(shapes)), normal(2, 2, 2, 64)
    )
    with torch.no_grad():
        expected = theirs(
            *torch_inputs(*given),
            down_block_additional_residuals=[to_nchw(r) for r in residuals.down],
            mid_block_additional_residual=to_nchw(residuals.mid),
        ).sample

    actual = jax.jit(lambda net, *args: net(*args, residuals=residuals, attention_at=(8, (4, 4))))(
        ours, *given
    )
    assert relative_error(actual.noise, to_nhwc(expected)) <= 1e-4
    cross = {n for n, layer in enumerate(layers) if layer.context_dim is not None}
    on_grid = {5, 7, 19, 21, 23} | {9, 11, 13, 15, 17}  # the 8×8 and the 4×4 maps
    assert set(actual.attention) == on_grid & cross
    for number, probabilities in actual.attention.items():
        seen = processors[f"{layers[number].path}.processor"].seen
        assert probabilities.dtype == jnp.float32
        assert relative_error(probabilities, seen.reshape(probabilities.shape)) <= 1e-4


def test_maps_of_the_32_grid_are_those_of_the_paper():
    """At 512² the 32×32 grid is that of cross layers 5, 7, 19, 21, 23."""
    net = abstract(UNet, UNetConfig.sd15())
    given = (
        jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, 77, 768), jnp.float32),
    )
    output = jax.eval_shape(lambda net, *args: net(*args, attention_at=(32,)), net, *given)
    assert {n: p.shape for n, p in output.attention.items()} == dict.fromkeys(
        (5, 7, 19, 21, 23), (1, 8, 1024, 77)
    )


# Our transformer is diffusers' own, whose import path within diffusers it warns about itself.
@pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput:FutureWarning")
@pytest.mark.parametrize("part", ["attn1", "attn2", "ff", "block", "transformer", "downsample"])
def test_each_part_equals_diffusers(sd1, part):
    theirs, ours = sd1
    given = Given(normal(2, 7, TINY.cross_attention_dim, seed=1))
    context = as_torch(given.context)
    maps, tokens = normal(2, 4, 6, 32), normal(2, 24, 32)
    them, us = theirs.down_blocks[0], ours.down_blocks[0]
    block, our_block = (
        net.attentions[0].transformer_blocks[0] for net in (theirs.down_blocks[0], us)
    )
    with torch.no_grad():
        match part:
            case "attn1":
                expected = block.attn1(as_torch(tokens))
                actual = our_block.attn1(tokens, (4, 6), given)[0]
            case "attn2":
                expected = block.attn2(as_torch(tokens), context)
                actual = our_block.attn2(tokens, (4, 6), given)[0]
            case "ff":
                expected, actual = block.ff(as_torch(tokens)), our_block.ff(tokens)
            case "block":
                expected = block(as_torch(tokens), encoder_hidden_states=context)
                actual = our_block(tokens, (4, 6), given)[0]
            case "transformer":
                expected = to_nhwc(them.attentions[0](to_nchw(maps), context).sample)
                actual = us.attentions[0](maps, given)[0]
            case "downsample":
                expected = to_nhwc(them.downsamplers[0](to_nchw(maps)))
                actual = us.downsamplers[0](maps)
    assert relative_error(actual, expected) <= 1e-5


def test_the_sizes_of_stable_diffusion():
    for config, count in ((UNetConfig.sd15(), 859_520_964), (UNetConfig.sd21(), 865_910_724)):
        net = abstract(UNet, config)
        assert sum(x.size for x in jax.tree.leaves(nnx.state(net))) == count
        with torch.device("meta"):
            theirs = diffusers.UNet2DConditionModel.from_config(config.to_config())
        shapes = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
        assert engine.torch_shapes(net, unet_table.table(config)) == shapes


def test_the_attention_order_is_that_of_the_adapters_files():
    layers = UNetConfig.sd15().attention_layers()
    places = [layer.path.split(".")[0] for layer in layers]
    assert places == ["down_blocks"] * 12 + ["up_blocks"] * 18 + ["mid_block"] * 2
    assert all((layer.context_dim is None) == (n % 2 == 0) for n, layer in enumerate(layers))
    net = abstract(UNet, UNetConfig.sd15())
    for number, layer in enumerate(layers):
        attention = net
        for name in layer.path.split("."):
            attention = attention[int(name)] if name.isdigit() else getattr(attention, name)
        assert attention.number == number
        assert attention.to_q.kernel.shape == (layer.dim, layer.dim)


@pytest.mark.parametrize("name", VARIANTS)
def test_config_survives_the_way_to_diffusers_and_back(name):
    theirs = diffusers.UNet2DConditionModel.from_config(VARIANTS[name].to_config())
    assert UNetConfig.from_config(theirs.config) == VARIANTS[name]


def test_config_refuses_foreign_arithmetic_all_at_once():
    config = TINY.to_config() | {
        "act_fn": "gelu",
        "class_embed_type": "timestep",
        "dual_cross_attention": True,
        "mid_block_type": "UNetMidBlock2D",
        "down_block_types": ["AttnDownBlock2D"] * 4,
    }
    del config["norm_eps"]
    with pytest.raises(UserError) as error:
        UNetConfig.from_config(config)
    for fault in (
        "act_fn='gelu' is not supported, only 'silu'",
        "class_embed_type='timestep' is unknown",
        "dual_cross_attention=True is unknown",
        "mid_block_type='UNetMidBlock2D' is not supported, only 'UNetMidBlock2DCrossAttn'",
        "down_block_types has 'AttnDownBlock2D'",
        "norm_eps is missing",
    ):
        assert fault in str(error.value)


def test_config_refuses_up_blocks_that_do_not_mirror():
    config = TINY.to_config() | {"up_block_types": ["CrossAttnUpBlock2D"] * 4}
    with pytest.raises(UserError, match=r"up_block_types=.*only .*'UpBlock2D', 'CrossAttn"):
        UNetConfig.from_config(config)


def test_config_refuses_shapes_that_cannot_work():
    with pytest.raises(UserError, match=r"64 channels do not divide into 5 heads; .*24 groups"):
        dataclasses.replace(TINY, num_heads=(2, 5, 4, 4), norm_num_groups=24)
    with pytest.raises(UserError, match="num_heads needs one entry for each of 4 levels"):
        dataclasses.replace(TINY, num_heads=(2, 4))


def test_id_tokens_without_an_adapter_are_refused(sd1):
    with pytest.raises(ValueError, match="id_tokens need the adapter"):
        sd1[1](*inputs(TINY), id_tokens=jnp.zeros((2, 4, 32)))


def test_residuals_of_another_net_are_refused(sd1):
    _, ours = sd1
    given = inputs(TINY)
    residuals = Residuals((normal(2, 16, 16, 32),), normal(2, 2, 2, 64))
    with pytest.raises(ValueError, match="must hold 12 maps, got 1"):
        jax.eval_shape(lambda net, *given: net(*given, residuals=residuals), ours, *given)


@pytest.mark.slow
def test_full_width_equals_diffusers():
    """SD 1.5 itself, 860 M random weights, one forward."""
    config = UNetConfig.sd15()
    theirs, ours = pair(config)
    given = inputs(config)
    with torch.no_grad():
        expected = theirs(*torch_inputs(*given)).sample
    actual = jax.jit(lambda net, *args: net(*args).noise)(ours, *given)
    error = relative_error(actual, to_nhwc(expected))
    print(f"relative error at SD 1.5's full width: {error:.2e}")  # noqa: T201
    assert error <= 1e-4
