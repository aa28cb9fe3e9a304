"""The autoencoder of Stable Diffusion: photos to latents an eighth of their size, and back.

Paper: Rombach et al. 2022 (latent diffusion), the KL-regularised variant. Equals diffusers 0.42's
`AutoencoderKL`. Layout NHWC, images in [-1, 1].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from fmv2.errors import UserError
from fmv2.models.attention import attention
from fmv2.models.config import check_fields
from fmv2.models.layers import GroupNorm, Options, ResnetBlock, Upsample, normed_silu
from fmv2.models.tiling import decode_tiles

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """The shape of an autoencoder. One entry per level in `block_out_channels`, outermost first."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int = 2
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 512
    """Side in pixels of the tiles that `decode(tiled=True)` cuts; any image size works."""
    scaling_factor: float = 0.18215
    """What brings latents to unit variance."""
    shift_factor: float | None = None
    """What is subtracted from latents before that."""
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        faults = [
            f"{channels} channels do not divide into {self.norm_num_groups} groups"
            for channels in self.block_out_channels
            if channels % self.norm_num_groups
        ]
        if not self.block_out_channels:
            faults.append("block_out_channels must name at least one level")
        if self.sample_size % self.downscale or self.sample_size < 2 * self.downscale:
            faults.append(
                f"sample_size must be a multiple of {self.downscale} and at least "
                f"{2 * self.downscale}, got {self.sample_size}"
            )
        if self.scaling_factor == 0:
            faults.append("scaling_factor must not be 0")
        if faults:
            raise UserError("VAE config: " + "; ".join(faults))

    @classmethod
    def sd15(cls) -> Self:
        """Stable Diffusion 1.x and 2.x: 83,653,863 parameters."""
        return cls(block_out_channels=(128, 256, 512, 512))

    @classmethod
    def embedded(cls) -> Self:
        """The embedded default's, for pictures of 128²; it is trained to latents of unit variance.

        1,563,659 parameters. Narrow where maps are large, which is what a few cores pay for. Norms
        take all channels together, so that those keep their levels against each other: there are
        too few for groups. Sixteen latent channels where Stable Diffusion has four.
        """
        return cls(
            block_out_channels=(8, 24, 48, 96),
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=1,
            sample_size=128,
            scaling_factor=1.0,
        )

    @classmethod
    def tiny(cls) -> Self:
        """Every part of SD's at a size for tests, latents an eighth of the image as there."""
        return cls(
            block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, sample_size=64
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From diffusers' `config.json`.

        Raises:
          UserError: fields that ask for arithmetic this net does not have, all of them named.
        """
        config = _DEFAULTS | dict(config)
        levels = len(config["block_out_channels"])
        size = config["sample_size"]
        faults = [
            f"{name}={list(config[name])!r} is not supported, only {levels} times {kind!r}"
            for name, kind in _BLOCK_TYPES.items()
            if list(config[name]) != [kind] * levels
        ]
        if not isinstance(size, int):
            faults.append(f"sample_size={size!r} is not supported, only a whole number")
        inert = (*_BLOCK_TYPES, "force_upcast")
        check_fields("VAE", config, read=_FIELDS, fixed=_FIXED, inert=inert, faults=faults)
        fields: dict[str, Any] = {name: config[name] for name in _FIELDS}
        fields["block_out_channels"] = tuple(fields["block_out_channels"])
        return cls(**fields)

    def to_config(self) -> dict[str, Any]:
        """diffusers' `config.json` of this net."""
        levels = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            **{name: [kind] * levels for name, kind in _BLOCK_TYPES.items()},
            **_FIXED,
            **dataclasses.asdict(self),
            "block_out_channels": list(self.block_out_channels),
        }

    @property
    def downscale(self) -> int:
        """Pixels per latent, along either side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def moments(self, size: int) -> tuple[int, int, int]:
        """Shape of a square picture's mean and log-variance together, channels last."""
        return (size // self.downscale, size // self.downscale, 2 * self.latent_channels)

    def scale(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Latents as the encoder gives them, to unit variance: what the U-Net works on."""
        return (latents - (self.shift_factor or 0.0)) * self.scaling_factor

    def unscale(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Latents of unit variance as the decoder takes them."""
        return latents / self.scaling_factor + (self.shift_factor or 0.0)


_FIELDS = tuple(field.name for field in dataclasses.fields(AutoencoderKLConfig))
_BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
# What the class of diffusers takes an absent field for.
_DEFAULTS = {
    "block_out_channels": [64],
    "layers_per_block": 1,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    **{name: [kind] for name, kind in _BLOCK_TYPES.items()},
}


class Moments(NamedTuple):
    """A diagonal Gaussian over latents. Its mode is its mean."""

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]

    def at(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The latents that lie so many standard deviations from the mean."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


def sample(moments: Moments, key: PRNGKeyArray) -> Float[Array, "b h w c"]:
    """Latents drawn from their distribution."""
    return moments.at(jax.random.normal(key, moments.mean.shape, moments.mean.dtype))


class AttentionBlock(nnx.Module):
    """Self-attention of one head over all pixels, added to its input."""

    def __init__(self, channels: int, *, groups: int, **options: Unpack[Options]):
        self.group_norm = GroupNorm(groups, channels, epsilon=_EPSILON, **options)
        self.to_q = nnx.Linear(channels, channels, **options)
        self.to_k = nnx.Linear(channels, channels, **options)
        self.to_v = nnx.Linear(channels, channels, **options)
        self.to_out = nnx.Linear(channels, channels, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(batch, height * width, 1, channels)
        # No flash kernel is made for a head as wide as this.
        y = attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), implementation="xla")
        return x + self.to_out(y).reshape(x.shape)


class MidBlock(nnx.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, channels: int, *, groups: int, attends: bool, **options: Unpack[Options]):
        self.resnets = nnx.List(_resnets(2, channels, channels, groups, options))
        self.attentions = nnx.List(
            [AttentionBlock(channels, groups=groups, **options)] if attends else []
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.resnets[0](x)
        for attend in self.attentions:
            x = attend(x)
        return self.resnets[1](x)


class Downsample(nnx.Module):
    """A 3×3 convolution of stride 2, padded below and to the right alone."""

    def __init__(self, channels: int, **options: Unpack[Options]):
        padding = ((0, 1), (0, 1))
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=padding, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class DownBlock(nnx.Module):
    """Residual blocks; all but the last level halve the map."""

    def __init__(
        self,
        layers: int,
        channels: int,
        out_channels: int,
        *,
        groups: int,
        halves: bool,
        **options: Unpack[Options],
    ):
        self.resnets = nnx.List(_resnets(layers, channels, out_channels, groups, options))
        self.downsamplers = nnx.List([Downsample(out_channels, **options)] if halves else [])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """Residual blocks; all but the last level double the map."""

    def __init__(
        self,
        layers: int,
        channels: int,
        out_channels: int,
        *,
        groups: int,
        doubles: bool,
        **options: Unpack[Options],
    ):
        self.resnets = nnx.List(_resnets(layers, channels, out_channels, groups, options))
        self.upsamplers = nnx.List([Upsample(out_channels, **options)] if doubles else [])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Images to the parameters of their latents' distribution."""

    def __init__(self, config: AutoencoderKLConfig, **options: Unpack[Options]):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = _conv(config.in_channels, widths[0], options)
        self.down_blocks = nnx.List(
            [
                DownBlock(
                    config.layers_per_block,
                    widths[max(level - 1, 0)],
                    width,
                    groups=groups,
                    halves=level < len(widths) - 1,
                    **options,
                )
                for level, width in enumerate(widths)
            ]
        )
        self.mid_block = MidBlock(
            widths[-1], groups=groups, attends=config.mid_block_add_attention, **options
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1], epsilon=_EPSILON, **options)
        self.conv_out = _conv(widths[-1], 2 * config.latent_channels, options)

    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b h w c2"]:
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(normed_silu(self.conv_norm_out, x))


class Decoder(nnx.Module):
    """Latents to images."""

    def __init__(self, config: AutoencoderKLConfig, **options: Unpack[Options]):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = _conv(config.latent_channels, widths[0], options)
        self.mid_block = MidBlock(
            widths[0], groups=groups, attends=config.mid_block_add_attention, **options
        )
        self.up_blocks = nnx.List(
            [
                UpBlock(
                    config.layers_per_block + 1,
                    widths[max(level - 1, 0)],
                    width,
                    groups=groups,
                    doubles=level < len(widths) - 1,
                    **options,
                )
                for level, width in enumerate(widths)
            ]
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1], epsilon=_EPSILON, **options)
        self.conv_out = _conv(widths[-1], config.out_channels, options)

    def __call__(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W c3"]:
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(normed_silu(self.conv_norm_out, x))


class AutoencoderKL(nnx.Module):
    """Encoder and decoder of unscaled latents: `config.scale` gives the U-Net's, `unscale` these.

    Args:
      config: the shape.
      dtype: of the arithmetic; None is what images and weights promote to. Norm statistics are
        float32.
      param_dtype: of the weights.
      rngs: of the initialisation.
    """

    def __init__(
        self,
        config: AutoencoderKLConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        channels = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, **options)
        self.decoder = Decoder(config, **options)
        self.quant_conv = (
            nnx.Linear(2 * channels, 2 * channels, **options) if config.use_quant_conv else None
        )
        self.post_quant_conv = (
            nnx.Linear(channels, channels, **options) if config.use_post_quant_conv else None
        )

    def encode(self, images: Float[Array, "b H W c"]) -> Moments:
        """The distribution of the images' latents.

        Args:
          images: in [-1, 1], any size; each halving drops an odd row or column.
        """
        parameters = self.encoder(images)
        if self.quant_conv is not None:
            parameters = self.quant_conv(parameters)
        mean, logvar = jnp.split(parameters, 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(
        self, latents: Float[Array, "b h w c"], *, sliced: bool = False, tiled: bool = False
    ) -> Float[Array, "b H W c3"]:
        """Images of the latents, about in [-1, 1].

        Args:
          latents: unscaled.
          sliced: one image at a time; memory as for one.
          tiled: images larger than `config.sample_size` in overlapping tiles of that size, blended
            where they overlap; activations as for one tile. Group norms and attention see one tile
            each, so that the image is near the whole one, not equal. Equals diffusers'
            `enable_tiling`.
        """
        decode = self._decode_tiled if tiled else self._decode
        if sliced:
            return jax.lax.map(lambda one: decode(one[None])[0], latents)
        return decode(latents)

    def _decode(self, latents):
        return self.decoder(
            latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        )

    def _decode_tiled(self, latents):
        tile = self.config.sample_size // self.config.downscale
        if max(latents.shape[1:3]) <= tile:
            return self._decode(latents)
        return decode_tiles(self._decode, latents, tile, self.config.downscale)


def _conv(channels: int, out_channels: int, options: Options) -> nnx.Conv:
    return nnx.Conv(channels, out_channels, (3, 3), padding=1, **options)


def _resnets(
    count: int, channels: int, out_channels: int, groups: int, options: Options
) -> list[ResnetBlock]:
    return [
        ResnetBlock(
            channels if i == 0 else out_channels,
            out_channels,
            time_channels=None,
            groups=groups,
            epsilon=_EPSILON,
            **options,
        )
        for i in range(count)
    ]
