"""The half that U-Net and control net share: time embedding, the way down, the middle.

Equals the parts of the same names in diffusers 0.42. Layout NHWC.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from flax import nnx
from jaxtyping import Array, Float

from fmv2.errors import UserError
from fmv2.models.config import check_fields
from fmv2.models.layers import Options, ResnetBlock, TimestepEmbedding
from fmv2.models.transformer import AttentionMaps, Given, SpatialTransformer

DOWN_BLOCK_TYPES = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
"""diffusers' names of a level that attends to its context, and of one that does not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of what both nets share. Tuples: one entry per level, outermost first."""

    block_out_channels: tuple[int, ...]
    cross_attention: tuple[bool, ...]
    """Which levels attend; the others only convolve."""
    num_heads: tuple[int, ...]
    cross_attention_dim: int
    use_linear_projection: bool = False
    """Whether files hold the transformers' projections as linear layers, not 1×1 convolutions."""
    layers_per_block: int = 2
    in_channels: int = 4
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    upcast_attention: bool = False
    """For PyTorch alone: at float16 SD 2.1 overflows there without it. Our softmax is float32."""

    def __post_init__(self):
        levels = len(self.block_out_channels)
        faults = [
            f"{name} needs one entry for each of {levels} levels, got {getattr(self, name)}"
            for name in ("cross_attention", "num_heads")
            if len(getattr(self, name)) != levels
        ]
        for channels, heads in zip(self.block_out_channels, self.num_heads, strict=False):
            if channels % self.norm_num_groups:
                faults.append(
                    f"{channels} channels do not divide into {self.norm_num_groups} groups"
                )
            if channels % heads:
                faults.append(f"{channels} channels do not divide into {heads} heads")
        if faults:
            raise UserError(f"{type(self).__name__}: " + "; ".join(faults))

    @staticmethod
    def shared_fields(
        net: str, config: Mapping[str, Any], own: Sequence[str], **fixed: Any
    ) -> dict[str, Any]:
        """The fields of this class from diffusers' names; refuses what the nets do not have.

        Args:
          net: what to call the net in an error.
          config: diffusers' `config.json`.
          own: the fields that the subclass reads by itself.
          fixed: fields with one value that is known, beside those of both nets.
        """
        down, known = tuple(config.get("down_block_types", ())), DOWN_BLOCK_TYPES.values()
        check_fields(
            net,
            config,
            read=(*_READ, *own),
            fixed=_FIXED | fixed,
            inert=(*_OPTIONAL, "num_attention_heads", "addition_embed_type_num_heads"),
            faults=[f"down_block_types has {kind!r}" for kind in down if kind not in known],
        )
        # What diffusers calls attention_head_dim is the number of heads, in every SD there is.
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        return {
            "block_out_channels": tuple(config["block_out_channels"]),
            "cross_attention": tuple(kind == DOWN_BLOCK_TYPES[True] for kind in down),
            "num_heads": (heads,) * len(down) if isinstance(heads, int) else tuple(heads),
            **{name: bool(config.get(name)) for name in _OPTIONAL},
            **{name: config[name] for name in _SAME},
        }

    def to_config(self) -> dict[str, Any]:
        """The shared part of diffusers' `config.json`."""
        heads = self.num_heads
        return {
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": [DOWN_BLOCK_TYPES[attends] for attends in self.cross_attention],
            "attention_head_dim": heads[0] if len(set(heads)) == 1 else list(heads),
            **{name: getattr(self, name) for name in (*_OPTIONAL, *_SAME)},
        }


_SAME = ("cross_attention_dim", "layers_per_block", "in_channels", "norm_num_groups", "norm_eps")
# Absent from older files.
_OPTIONAL = ("use_linear_projection", "upcast_attention")
_READ = ("block_out_channels", "down_block_types", "attention_head_dim", *_SAME)
_FIXED = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "transformer_layers_per_block": 1,
    "resnet_time_scale_shift": "default",
}


def resnet_block(
    config: EncoderConfig, channels: int, out_channels: int, **options: Unpack[Options]
):
    """A residual block of this net."""
    return ResnetBlock(
        channels,
        out_channels,
        time_channels=4 * config.block_out_channels[0],
        groups=config.norm_num_groups,
        epsilon=config.norm_eps,
        **options,
    )


def spatial_transformer(
    config: EncoderConfig, level: int, numbers: Iterator[int], **options: Unpack[Options]
):
    """A transformer of this level; it takes the next two numbers of the attention order."""
    return SpatialTransformer(
        config.block_out_channels[level],
        config.cross_attention_dim,
        config.num_heads[level],
        groups=config.norm_num_groups,
        number=next(numbers),
        **options,
    )


class Downsample(nnx.Module):
    """A 3×3 convolution of stride 2, padded by one on every side."""

    def __init__(self, channels: int, **options: Unpack[Options]):
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=1, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class DownBlock(nnx.Module):
    """A level on the way down. Every residual block leaves a skip connection, and the
    downsampler one more.
    """

    def __init__(
        self, config: EncoderConfig, level: int, numbers: Iterator[int], **options: Unpack[Options]
    ):
        channels = config.block_out_channels
        widths = [channels[max(level - 1, 0)]] + [channels[level]] * config.layers_per_block
        self.resnets = nnx.List(
            [resnet_block(config, a, b, **options) for a, b in itertools.pairwise(widths)]
        )
        self.attentions = nnx.List(
            [spatial_transformer(config, level, numbers, **options) for _ in self.resnets]
            if config.cross_attention[level]
            else []
        )
        last = level == len(channels) - 1
        self.downsamplers = nnx.List([] if last else [Downsample(channels[level], **options)])

    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"], given: Given
    ) -> tuple[Float[Array, "b h2 w2 d"], tuple[Array, ...], AttentionMaps]:
        skips, maps = [], {}
        for resnet, transformer in itertools.zip_longest(self.resnets, self.attentions):
            x = given.kept(resnet)(x, time)
            if transformer is not None:
                x, found = given.kept(partial(transformer, given=given))(x)
                maps |= found
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, tuple(skips), maps


class MidBlock(nnx.Module):
    """The innermost part: a transformer between two residual blocks."""

    def __init__(self, config: EncoderConfig, numbers: Iterator[int], **options: Unpack[Options]):
        channels = config.block_out_channels[-1]
        self.resnets = nnx.List(
            [resnet_block(config, channels, channels, **options) for _ in range(2)]
        )
        self.attentions = nnx.List([spatial_transformer(config, -1, numbers, **options)])

    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"], given: Given
    ) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        x = given.kept(self.resnets[0])(x, time)
        x, maps = given.kept(partial(self.attentions[0], given=given))(x)
        return given.kept(self.resnets[1])(x, time), maps


class Encoder(nnx.Module):
    """What U-Net and control net have in common: the time embedding, the way down and the
    middle.
    """

    def __init__(self, config: EncoderConfig, numbers: Iterator[int], **options: Unpack[Options]):
        channels = config.block_out_channels
        self.conv_in = nnx.Conv(config.in_channels, channels[0], (3, 3), padding=1, **options)
        self.time_embedding = TimestepEmbedding(channels[0], **options)
        self.down_blocks = nnx.List(
            [DownBlock(config, level, numbers, **options) for level in range(len(channels))]
        )

    def descend(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"], given: Given
    ) -> tuple[Float[Array, "b h2 w2 d"], list[Array], AttentionMaps]:
        """From the first map to the innermost one, with every skip connection in the order they
        arise.
        """
        skips, maps = [x], {}
        for block in self.down_blocks:
            x, left, found = block(x, time, given)
            skips += left
            maps |= found
        return x, skips, maps
