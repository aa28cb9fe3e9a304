"""The shared layers, one by one, against torch and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding as TorchTimestepEmbedding
from diffusers.models.embeddings import Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from flax import nnx

from convert import engine
from convert.rules import Table, conv, conv1x1, linear, norm
from fmv2.models import layers
from fmv2.models.layers import GroupNorm, Lora, Options, ResnetBlock, TimestepEmbedding, Upsample
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

TABLE = Table(
    (
        *norm("norm{i}"),
        *conv("conv{i}"),
        *conv("conv"),
        *linear("time_emb_proj"),
        *conv1x1("conv_shortcut"),
        *linear("linear_{i}"),
    )
)


def options(dtype=None) -> Options:
    return Options(dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def loaded(make, theirs):
    return engine.load(nnx.eval_shape(make), refs(theirs.state_dict()), TABLE, name="layer")


def normal(*shape, mean=0.0, std=1.0):
    return jnp.asarray(np.random.default_rng(0).normal(mean, std, shape).astype(np.float32))


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (30, 1), (0, 1e-3)])
def test_group_norm_equals_torch(mean, std):
    theirs = randomize_(torch.nn.GroupNorm(4, 24, eps=1e-5))
    ours = GroupNorm(4, 24, epsilon=1e-5, **options())
    ours.scale[...] = jnp.asarray(theirs.weight.detach().numpy())
    ours.bias[...] = jnp.asarray(theirs.bias.detach().numpy())
    x = normal(2, 5, 7, 24, mean=mean, std=std)
    # One pass over the map: a mean of thirty deviations costs the variance three digits.
    limit = 1e-5 if mean == 0 else 1e-3
    assert relative_error(ours(x), to_nhwc(theirs(to_nchw(x)))) <= limit


def test_group_norm_keeps_half_precision_and_counts_in_float32():
    ours = GroupNorm(4, 24, epsilon=1e-5, **options())
    x = normal(1, 32, 32, 24, mean=3).astype(jnp.bfloat16)
    y = ours(x)
    assert y.dtype == jnp.bfloat16
    assert relative_error(y.astype(jnp.float32), ours(x.astype(jnp.float32))) <= 2**-8


def test_gelu_is_exact_in_float32_and_close_in_half_precision():
    x = jnp.linspace(-30, 30, 20001)
    exact = torch.nn.functional.gelu(torch.tensor(np.array(x, np.float64))).numpy()
    assert relative_error(layers.gelu(x), exact) <= 1e-6
    # Near zero float16 is fine enough to show what the approximation errs, bfloat16 nowhere.
    half = x.astype(jnp.float16)
    exact = torch.nn.functional.gelu(torch.tensor(np.array(half, np.float64))).numpy()
    error = np.abs(np.float64(layers.gelu(half)) - exact)
    assert (error <= 3e-5 + np.abs(exact) / 2**11).all()
    half = x.astype(jnp.bfloat16)
    slope = jax.vmap(jax.grad(layers.gelu))(half)
    exact = jax.vmap(jax.grad(layers.gelu))(half.astype(jnp.float32))
    assert relative_error(slope, exact) <= 2**-8


def test_group_norm_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="25 channels do not divide into 4 groups"):
        GroupNorm(4, 25, epsilon=1e-5, **options())


@pytest.mark.parametrize("out_channels", [24, 32])
def test_resnet_block_equals_diffusers(out_channels):
    theirs = randomize_(
        ResnetBlock2D(
            in_channels=24, out_channels=out_channels, temb_channels=16, groups=4, eps=1e-5
        )
    )
    ours = loaded(
        lambda: ResnetBlock(
            24, out_channels, time_channels=16, groups=4, epsilon=1e-5, **options()
        ),
        theirs,
    )
    x, time = normal(2, 5, 7, 24), normal(2, 16)
    expected = theirs(to_nchw(x), torch.tensor(np.array(time)))
    assert relative_error(ours(x, time), to_nhwc(expected)) <= 1e-5


def test_a_block_made_for_the_time_embedding_refuses_to_go_without():
    block = ResnetBlock(24, 24, time_channels=16, groups=4, epsilon=1e-5, **options())
    with pytest.raises(ValueError, match="needs the time embedding"):
        block(normal(1, 4, 4, 24))


@pytest.mark.parametrize("size", [(10, 14), (9, 13)])
def test_upsample_equals_diffusers(size):
    theirs = randomize_(Upsample2D(8, use_conv=True))
    ours = loaded(lambda: Upsample(8, **options()), theirs)
    x = normal(2, 5, 7, 8)
    expected = theirs(to_nchw(x), output_size=size)
    assert relative_error(ours(x, size), to_nhwc(expected)) <= 1e-5


@pytest.mark.parametrize("timestep", [0, 1, 500, 999, 17.5])
def test_timestep_embedding_equals_diffusers(timestep):
    waves = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)
    theirs = randomize_(TorchTimestepEmbedding(32, 128))
    ours = loaded(lambda: TimestepEmbedding(32, **options()), theirs)
    expected = theirs(waves(torch.tensor([timestep])))
    assert relative_error(ours(jnp.array([timestep]), jnp.float32), expected) <= 1e-5


def lora_pair(inner, outer, rank, alpha=None, dtype=None):
    linear = nnx.Linear(inner, outer, **options(dtype))
    lora = Lora(inner, outer, rank=rank, alpha=alpha, **options(dtype))
    lora.up.kernel[...] = normal(rank, outer)
    return linear, lora


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize(("tokens", "merged"), [(4, False), (4096, True)])
def test_lora_is_one_sum_in_either_order(tokens, merged, alpha):
    linear, lora = lora_pair(32, 48, 8, alpha)
    assert layers.merges(tokens, 32, 48, 8, jnp.float32) == merged
    x = normal(2, tokens // 2, 32)
    scale = 1 if alpha is None else alpha / 8
    expected = linear(x) + scale * lora.up(lora.down(x))
    assert relative_error(layers.lora_linear(linear, lora, x), expected) <= 1e-5


@pytest.mark.parametrize(
    ("tokens", "dim", "rank"), [(4096, 64, 32), (64, 64, 32), (1024, 128, 32), (16, 128, 32)]
)
def test_the_chosen_order_costs_fewer_flops_forward_and_backward(monkeypatch, tokens, dim, rank):
    linear, lora = lora_pair(dim, dim, rank)
    x = normal(tokens, dim)
    chosen = layers.merges(tokens, dim, dim, rank, jnp.float32)

    def flops(merged):
        monkeypatch.setattr(layers, "merges", lambda *_: merged)
        graph, weights = nnx.split(lora)

        def loss(weights, x):
            return jnp.sum(layers.lora_linear(linear, nnx.merge(graph, weights), x) ** 2)

        return jax.jit(jax.grad(loss, (0, 1))).lower(weights, x).compile().cost_analysis()["flops"]

    assert flops(chosen) < flops(not chosen)


def test_half_precision_never_merges_and_so_keeps_a_small_addition():
    linear, lora = lora_pair(320, 320, 8, dtype=jnp.bfloat16)
    assert not layers.merges(10**6, 320, 320, 8, jnp.bfloat16)
    # As frozen weights are stored: on the grid of bfloat16. The addition is below half a step.
    linear.kernel[...] = linear.kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    lora.up.kernel[...] = lora.up.kernel[...] * 1e-4
    x = normal(4096, 320).astype(jnp.bfloat16)
    added = lora.down.kernel[...] @ lora.up.kernel[...]
    exact = x.astype(jnp.float32) @ added
    merged = x @ (linear.kernel[...] + added).astype(jnp.bfloat16)

    def learnt(y):
        """The share of the addition that is found in y, by projection on the exact one."""
        got = (y - linear(x)).astype(jnp.float32)
        return float(jnp.vdot(got, exact) / jnp.vdot(exact, exact))

    assert abs(learnt(layers.lora_linear(linear, lora, x)) - 1) < 0.1
    assert learnt(merged) < 0.5
