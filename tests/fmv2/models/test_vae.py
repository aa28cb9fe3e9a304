"""`AutoencoderKL` against diffusers' on random weights, whole and block by block."""

import copy
import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from flax import nnx

from convert.engine import dump, load, torch_shapes
from convert.tables.vae import VAE
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.vae import AutoencoderKL, AutoencoderKLConfig, Moments, sample
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

TINY = AutoencoderKLConfig.tiny()
VARIANTS = {
    "tiny": TINY,
    "small": dataclasses.replace(
        TINY,
        block_out_channels=(8, 12),
        layers_per_block=2,
        latent_channels=6,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "no attention": dataclasses.replace(TINY, mid_block_add_attention=False),
}


def peers(config, dtype=torch.float32):
    """The torch net of a configuration and ours with its weights."""
    peer = randomize_(TorchAutoencoderKL.from_config(config.to_config())).to(dtype)
    return peer, load(abstract(AutoencoderKL, config), refs(peer.state_dict()), VAE, name="vae")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def tiny():
    return peers(TINY)


@pytest.mark.parametrize(
    ("path", "channels"),
    [
        ("encoder.conv_in", 3),
        ("encoder.down_blocks.0.resnets.0", 8),
        ("encoder.down_blocks.2.resnets.0", 8),  # with a shortcut
        ("encoder.down_blocks.0.downsamplers.0", 8),
        ("encoder.down_blocks.2", 8),
        ("encoder.mid_block.attentions.0", 16),
        ("encoder.mid_block", 16),
        ("encoder.conv_norm_out", 16),
        ("decoder.up_blocks.0.upsamplers.0", 16),
        ("decoder.up_blocks.2", 16),
        ("decoder.up_blocks.3", 8),
        ("quant_conv", 8),
    ],
)
def test_each_block_equals_diffusers(tiny, path, channels):
    peer, net = tiny
    block = functools.reduce(
        lambda node, name: node[int(name)] if name.isdigit() else getattr(node, name),
        path.split("."),
        net,
    )
    x = normal(2, 7, 10, channels)
    with torch.no_grad():
        torch_block = peer.get_submodule(path)
        time = (None,) if ".resnets." in path else ()
        expected = torch_block(to_nchw(x), *time)
    assert relative_error(nnx.jit(lambda b, x: b(x))(block, x), to_nhwc(expected)) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(32, 32), (43, 58)], ids=["square", "odd"])
def test_encode_and_decode_equal_diffusers(name, size):
    config = VARIANTS[name]
    peer, net = peers(config)
    images, latents = normal(2, *size, 3), normal(2, 5, 7, config.latent_channels)
    with torch.no_grad():
        expected = peer.encode(to_nchw(images)).latent_dist
        decoded = peer.decode(to_nchw(latents)).sample
    moments = nnx.jit(AutoencoderKL.encode)(net, images)
    assert relative_error(moments.mean, to_nhwc(expected.mean)) < 1e-4
    assert relative_error(moments.logvar, to_nhwc(expected.logvar)) < 1e-4
    assert relative_error(nnx.jit(AutoencoderKL.decode)(net, latents), to_nhwc(decoded)) < 1e-4


def test_logvar_is_clipped_as_in_diffusers(tiny):
    peer, net = tiny
    peer, images = copy.deepcopy(peer), normal(1, 16, 16, 3)
    peer.quant_conv.bias.data += torch.tensor([0.0] * 4 + [-500.0, 500.0, 0.0, 0.0])
    net = load(net, refs(peer.state_dict()), VAE, name="vae")
    with torch.no_grad():
        expected = peer.encode(to_nchw(images)).latent_dist.logvar
    logvar = nnx.jit(AutoencoderKL.encode)(net, images).logvar
    assert (logvar.min(), logvar.max()) == (-30, 20)
    assert relative_error(logvar, to_nhwc(expected)) < 1e-4


@pytest.mark.parametrize("size", [(17, 21), (8, 13)], ids=str)
def test_tiled_decode_equals_diffusers(size):
    peer, net = peers(VARIANTS["small"])  # tiles of 8 latents, 6 apart
    latents = normal(2, *size, 6)
    whole = nnx.jit(AutoencoderKL.decode)(net, latents)
    actual = nnx.jit(lambda net, z: net.decode(z, tiled=True))(net, latents)
    peer.enable_tiling()
    with torch.no_grad():
        expected = to_nhwc(peer.decode(to_nchw(latents)).sample)
    assert relative_error(actual, expected) < 1e-4
    assert relative_error(actual, whole) > 1e-3, "the image was not cut into tiles"


def test_small_images_are_not_tiled_and_slices_change_nothing():
    _, net = peers(VARIANTS["small"])
    latents = normal(3, 8, 6, 6)
    whole = nnx.jit(AutoencoderKL.decode)(net, latents)
    for options in ({"tiled": True}, {"sliced": True}, {"tiled": True, "sliced": True}):
        actual = nnx.jit(lambda net, z, options=options: net.decode(z, **options))(net, latents)
        assert relative_error(actual, whole) < 1e-5, options


def test_decoder_gradient_equals_autograd(tiny):
    """The identity loss is differentiated through the decoder."""
    peer, net = tiny
    latents, weight = normal(1, 5, 6, 4), normal(1, 40, 48, 3, seed=1)
    z = to_nchw(latents).requires_grad_()
    (expected,) = torch.autograd.grad((peer.decode(z).sample * to_nchw(weight)).sum(), z)
    actual = nnx.jit(lambda net, z: jax.grad(lambda z: jnp.vdot(net.decode(z), weight))(z))(
        net, latents
    )
    assert relative_error(actual, to_nhwc(expected)) < 1e-4


def test_sample_has_the_moments_and_follows_its_key():
    mean, logvar = jnp.full((1, 64, 64, 2), 3.0), jnp.full((1, 64, 64, 2), np.log(0.25))
    moments = Moments(mean, logvar)
    drawn = sample(moments, jax.random.key(0))
    assert abs(drawn.mean() - 3.0) < 0.03
    assert abs(drawn.std() - 0.5) < 0.02
    assert (drawn == sample(moments, jax.random.key(0))).all()
    assert (drawn != sample(moments, jax.random.key(1))).any()


def test_scaling_undoes_itself():
    config = dataclasses.replace(TINY, scaling_factor=0.25, shift_factor=0.5)
    latents = normal(1, 2, 2, 4)
    np.testing.assert_allclose(config.scale(latents), (latents - 0.5) * 0.25)
    np.testing.assert_allclose(config.unscale(config.scale(latents)), latents, atol=1e-6)


def test_half_precision_stays_near(tiny):
    peer, net = tiny
    low = abstract(AutoencoderKL, TINY, dtype=jnp.bfloat16)
    low = load(low, refs(peer.state_dict()), VAE, name="vae", dtype=jnp.bfloat16)
    latents = normal(1, 5, 6, 4)
    actual = nnx.jit(AutoencoderKL.decode)(low, latents)
    assert actual.dtype == jnp.bfloat16
    assert relative_error(actual, nnx.jit(AutoencoderKL.decode)(net, latents)) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_is_bit_exact(name, dtype):
    peer, net = peers(VARIANTS[name], dtype)
    expected, actual = refs(peer.state_dict()), dict(dump(net, VAE))
    assert actual.keys() == expected.keys()
    for key, array in actual.items():
        assert array.dtype == expected[key].dtype, key
        assert array.tobytes() == expected[key].read().tobytes(), key


def test_attention_names_of_old_files_are_read(tiny):
    peer, net = tiny
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = peer.state_dict()
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in state.items()}
    assert sum(".query." in key for key in state) == 4
    loaded = load(abstract(AutoencoderKL, TINY), refs(state), VAE, name="vae")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), nnx.state(loaded), nnx.state(net))
    assert all(jax.tree.leaves(same))


def test_full_size_has_the_names_and_shapes_of_diffusers():
    config = AutoencoderKLConfig.sd15()
    with torch.device("meta"):
        peer = TorchAutoencoderKL.from_config(config.to_config())
    expected = {key: tuple(tensor.shape) for key, tensor in peer.state_dict().items()}
    shapes = torch_shapes(abstract(AutoencoderKL, config), VAE)
    assert shapes == expected
    assert sum(map(np.prod, shapes.values())) == 83_653_863


@pytest.mark.parametrize("name", VARIANTS)
def test_config_survives_diffusers(name):
    config = VARIANTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stock = TorchAutoencoderKL.from_config(config.to_config()).config
    assert AutoencoderKLConfig.from_config(stock) == config


def test_absent_fields_are_diffusers_defaults():
    given = {"block_out_channels": [32, 32]}
    types = {
        f"{way}_block_types": [f"{name}Block2D"] * 2
        for way, name in (("down", "DownEncoder"), ("up", "UpDecoder"))
    }
    stock = TorchAutoencoderKL(**given, **types).config
    assert AutoencoderKLConfig.from_config(given | types) == AutoencoderKLConfig.from_config(stock)


def test_unsupported_configs_are_refused_by_name():
    config = TINY.to_config() | {
        "act_fn": "gelu",
        "latents_mean": [0.0],
        "up_block_types": ["UpDecoderBlock2D"] * 3 + ["AttnUpDecoderBlock2D"],
        "sample_size": [64, 64],
        "window": 7,
        "force_upcast": False,
    }
    with pytest.raises(UserError) as error:
        AutoencoderKLConfig.from_config(config)
    for name in (
        "act_fn='gelu'",
        "latents_mean=[0.0]",
        "up_block_types=",
        "sample_size=",
        "window=7",
    ):
        assert name in str(error.value)
    assert "force_upcast" not in str(error.value)


def test_impossible_shapes_are_refused_at_once():
    with pytest.raises(UserError) as error:
        AutoencoderKLConfig(
            block_out_channels=(8, 6), norm_num_groups=4, sample_size=5, scaling_factor=0
        )
    for text in (
        "6 channels do not divide into 4",
        "multiple of 2 and at least 4, got 5",
        "scaling_factor",
    ):
        assert text in str(error.value)
