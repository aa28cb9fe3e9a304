"""The layers that the nets of Stable Diffusion share. NHWC, attributes named as in diffusers."""

import math
from functools import partial
from typing import Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

Start = Literal["published", "quick"]
"""What a net that is set beside a U-Net begins as.

Published: IP-Adapter's copy of the text's values, which throws off a base that heeds its text until
they are unlearnt; ControlNet's zeros at both ends of the map's way, of which the first end learns
nothing before the last has. Quick: no values, so that the first step finds the base as it was, and
zeros at the last end alone.
"""

LANES = 128
"""Of a TPU's registers: flash attention takes tokens by so many."""

ATTENDED = "attended"
"""The name, for `jax.checkpoint`'s policies, of what a flash kernel gives: a gradient would call
the kernel again for it."""

STATISTICS = "statistics"
"""The name, for `jax.checkpoint`'s policies, of a group norm's means and variances: a few numbers,
for which a gradient would read the whole map again."""


class Options(TypedDict):
    """What every layer is made with.

    `dtype` is that of its arithmetic (None: whatever input and weights promote to), `param_dtype`
    that of its weights.
    """

    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: nnx.Rngs


class GroupNorm(nnx.Module):
    """torch.nn.GroupNorm over the channels of an NHWC map, statistics in float32.

    `nnx.GroupNorm` splits the channels into (groups, channels per group) while the map is still
    large; on TPU a last dimension of ten is padded to 128. Here each channel is summed over space
    first and only those sums are grouped, so that the map is read once for its statistics and once
    to be scaled.
    """

    def __init__(self, groups: int, features: int, *, epsilon: float, **options: Unpack[Options]):
        if features % groups:
            raise ValueError(f"{features} channels do not divide into {groups} groups")
        self.groups = groups
        self.epsilon = epsilon
        self.dtype = options["dtype"]
        self.scale = nnx.Param(jnp.ones(features, options["param_dtype"]))
        self.bias = nnx.Param(jnp.zeros(features, options["param_dtype"]))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1] // self.groups

        def mean_of_group(y):
            per_channel = y.mean((1, 2), dtype=jnp.float32)
            return per_channel.reshape(-1, self.groups, channels).mean(-1)

        wide = x.astype(jnp.float32)
        mean = mean_of_group(wide)
        variance = jnp.maximum(mean_of_group(jnp.square(wide)) - jnp.square(mean), 0.0)
        mean, variance = (checkpoint_name(x, STATISTICS) for x in (mean, variance))
        inverse = jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        scale = jnp.repeat(inverse, channels, axis=1) * scale[None]
        shift = bias[None] - jnp.repeat(mean, channels, axis=1) * scale
        y = wide * scale[:, None, None, :] + shift[:, None, None, :]
        return y.astype(self.dtype or x.dtype)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x Φ(x), exact in float32. In half precision it is within 3e-5 of that before it is rounded,
    Φ being a hyperbolic tangent of a polynomial: a TPU has an instruction for the tangent, and
    none for the error function.
    """
    if jnp.finfo(x.dtype).bits >= 32:
        return nnx.gelu(x, approximate=False)
    wide = x.astype(jnp.float32)
    square = jnp.minimum(jnp.square(wide), 25.0)
    # The least squares of x Φ(x), rounded.
    slope = 0.7975 + square * (0.037 - 0.00035 * square)
    return (wide * (0.5 + 0.5 * jnp.tanh(wide * slope))).astype(x.dtype)


@partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(STATISTICS))
def normed_silu(norm: GroupNorm, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """silu(norm(x)). The gradient computes it anew from x and the norm's statistics, which costs
    less than keeping it."""
    return nnx.silu(norm(x))


def unbiased_conv(
    channels: int, out_channels: int, size: int, stride: int, options: Options
) -> nnx.Conv:
    """torch's convolution of odd size without a bias, for a batch norm behind it."""
    # Padded alike on all sides; "SAME" would pad a stride of 2 on one side alone.
    return nnx.Conv(
        channels,
        out_channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        **options,
    )


def batch_norm(features: int, options: Options) -> nnx.BatchNorm:
    """torch.nn.BatchNorm over the last axis, statistics in float32.

    It uses its running statistics, as torch's does after `eval()`, until `train()` is called.
    """
    return nnx.BatchNorm(
        features,
        use_running_average=True,
        momentum=0.9,
        epsilon=1e-5,
        promote_dtype=_unpromoted,
        **options,
    )


def _unpromoted(arrays, **_):
    """Instead of Flax's promotion, which would round the statistics to the compute dtype."""
    return arrays


class TimestepEmbedding(nnx.Module):
    """Sinusoids of the timestep (cosines first, as SD has it) through two linear layers.

    Source: Ho et al. 2020; equals diffusers' `get_timestep_embedding(flip_sin_to_cos=True)` and
      `TimestepEmbedding`.
    """

    def __init__(self, channels: int, **options: Unpack[Options]):
        self.channels = channels
        self.linear_1 = nnx.Linear(channels, 4 * channels, **options)
        self.linear_2 = nnx.Linear(4 * channels, 4 * channels, **options)

    def __call__(self, timesteps: Num[Array, " b"], dtype: DTypeLike) -> Float[Array, "b e"]:
        half = self.channels // 2
        frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
        angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return self.linear_2(nnx.silu(self.linear_1(waves.astype(dtype))))


class ResnetBlock(nnx.Module):
    """Two normed 3×3 convolutions beside a shortcut; the time embedding enters between them.

    Equals diffusers' `ResnetBlock2D` with `time_embedding_norm="default"`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        time_channels: int | None,
        groups: int,
        epsilon: float,
        **options: Unpack[Options],
    ):
        self.norm1 = GroupNorm(groups, channels, epsilon=epsilon, **options)
        self.conv1 = nnx.Conv(channels, out_channels, (3, 3), padding=1, **options)
        self.time_emb_proj = (
            None if time_channels is None else nnx.Linear(time_channels, out_channels, **options)
        )
        self.norm2 = GroupNorm(groups, out_channels, epsilon=epsilon, **options)
        self.conv2 = nnx.Conv(out_channels, out_channels, (3, 3), padding=1, **options)
        self.conv_shortcut = (
            None if channels == out_channels else nnx.Linear(channels, out_channels, **options)
        )

    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w d"]:
        h = self.conv1(normed_silu(self.norm1, x))
        if self.time_emb_proj is not None:
            if time is None:
                raise ValueError(
                    "this block was made with time_channels: it needs the time embedding"
                )
            h = h + self.time_emb_proj(nnx.silu(time))[:, None, None, :]
        h = self.conv2(normed_silu(self.norm2, h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Upsample(nnx.Module):
    """Nearest-neighbour doubling and a 3×3 convolution."""

    def __init__(self, channels: int, **options: Unpack[Options]):
        self.conv = nnx.Conv(channels, channels, (3, 3), padding=1, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        """The map at twice its size, or at `size`, one less where the skip connection is odd."""
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return self.conv(x)


class Lora(nnx.Module):
    """A low-rank addition to a linear layer: x ↦ scale · up(down(x)), scale = alpha / rank or 1.

    Source: Hu et al. 2021; initialised as diffusers' `LoRALinearLayer`: down ~ N(0, 1/rank), up =
      0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        alpha: float | None,
        **options: Unpack[Options],
    ):
        self.scale = 1.0 if alpha is None else alpha / rank
        normal = nnx.initializers.normal(1 / rank)
        self.down = nnx.Linear(in_features, rank, use_bias=False, kernel_init=normal, **options)
        zeros = nnx.initializers.zeros
        self.up = nnx.Linear(rank, out_features, use_bias=False, kernel_init=zeros, **options)


def lora_linear(
    linear: nnx.Linear, lora: Lora | None, x: Float[Array, "*b i"]
) -> Float[Array, "*b o"]:
    """linear(x) + lora(x), contracted in whichever order costs less; see `merges`."""
    if lora is None:
        return linear(x)
    dtype = linear.dtype or jnp.result_type(x, linear.kernel)
    down, up = lora.down.kernel[...].astype(jnp.float32), lora.up.kernel[...].astype(jnp.float32)
    x, kernel = x.astype(dtype), linear.kernel[...].astype(dtype)
    tokens, (inner, outer) = math.prod(x.shape[:-1]), kernel.shape
    if merges(tokens, inner, outer, down.shape[1], dtype):
        y = x @ (kernel + lora.scale * (down @ up)).astype(dtype)
    else:
        # Summed in float32 before it is rounded: a small addition would vanish beside a rounded
        # product.
        addition = jnp.matmul(jnp.matmul(x, down.astype(dtype)), up.astype(dtype) * lora.scale)
        y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        y = (y + addition).astype(dtype)
    if linear.bias is None:
        return y
    return y + linear.bias[...].astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def merges(tokens: int, in_features: int, out_features: int, rank: int, dtype: DTypeLike) -> bool:
    """Whether adding B·A into the weight costs less, forward and backward, than a path beside it.

    Beside: tokens · rank · (in + out), three times (once forward, twice backward). Merged: in ·
      rank · out three times,
    and once the gradient of the whole weight, tokens · in · out. Half precision never merges: the
    frozen weight lies on the grid of its dtype, and an addition below half a step would be rounded
    away whole.
    """
    if jnp.finfo(dtype).bits < 32:
        return False
    beside = 3 * tokens * rank * (in_features + out_features)
    merged = in_features * out_features * (3 * rank + tokens)
    return merged < beside
