"""The U-Net of Stable Diffusion 1.x and 2.x, with the identity adapter as an argument.

Paper: Rombach et al. 2022 (latent diffusion). Equals diffusers 0.42's `UNet2DConditionModel`; with an adapter it equals
that class under IP-Adapter-FaceID's attention processors. Layout NHWC. Whether the net predicts ε, v or x₀ is a matter
of its training and of the noise schedule, not of the net.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from fmv2.models.attention import AttentionChoice
from fmv2.models.config import check_fields
from fmv2.models.layers import GroupNorm, Options, ResnetBlock, TimestepEmbedding, Upsample
from fmv2.models.transformer import AttentionMaps, Given, SpatialTransformer

if TYPE_CHECKING:
    from fmv2.models.id_adapter import IdAdapter


class UNetOutput(NamedTuple):
    """The prediction, and the attention maps that were asked for."""

    noise: Float[Array, "b h w c"]
    attention: AttentionMaps


class Residuals(NamedTuple):
    """What a control net adds: to every skip connection, in the order they arise, and to the middle."""

    down: tuple[Float[Array, "b h w c"], ...]
    mid: Float[Array, "b h w c"]


class AttentionLayer(NamedTuple):
    """One attention layer: its torch name and its widths (`context_dim` is None for self-attention)."""

    path: str
    dim: int
    context_dim: int | None


_DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
_UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of the half that U-Net and control net share. Tuples have one entry per level, outermost first."""

    block_out_channels: tuple[int, ...]
    cross_attention: tuple[bool, ...]
    """Which levels attend; the others only convolve."""
    num_heads: tuple[int, ...]
    cross_attention_dim: int
    use_linear_projection: bool = False
    """Whether files hold the transformers' projections as linear layers or as 1×1 convolutions; same arithmetic."""
    layers_per_block: int = 2
    in_channels: int = 4
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

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
            raise ValueError(f"{type(self).__name__}: " + "; ".join(faults))

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
        down = tuple(config.get("down_block_types", ()))
        check_fields(
            net,
            config,
            read=(*_READ, *own),
            fixed=_FIXED | fixed,
            inert=("use_linear_projection", "num_attention_heads", *_INERT),
            faults=[
                f"down_block_types has {kind!r}" for kind in down if kind not in _DOWN.values()
            ],
        )
        # What diffusers calls attention_head_dim is the number of heads, in every SD there is.
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        return {
            "block_out_channels": tuple(config["block_out_channels"]),
            "cross_attention": tuple(kind == _DOWN[True] for kind in down),
            "num_heads": (heads,) * len(down) if isinstance(heads, int) else tuple(heads),
            "use_linear_projection": bool(config.get("use_linear_projection")),
            **{name: config[name] for name in _SAME},
        }

    def to_config(self) -> dict[str, Any]:
        """The shared part of diffusers' `config.json`."""
        heads = self.num_heads
        return {
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": [_DOWN[attends] for attends in self.cross_attention],
            "attention_head_dim": heads[0] if len(set(heads)) == 1 else list(heads),
            "use_linear_projection": self.use_linear_projection,
            **{name: getattr(self, name) for name in _SAME},
        }


_SAME = ("cross_attention_dim", "layers_per_block", "in_channels", "norm_num_groups", "norm_eps")
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
# The softmax is float32 whether or not upcast_attention asks for it; the other belongs to another kind of embedding.
_INERT = ("upcast_attention", "addition_embed_type_num_heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(EncoderConfig):
    """The shape of a U-Net."""

    out_channels: int = 4
    sample_size: int = 64
    """Side of the latents it was trained on; the net takes any other too."""

    @classmethod
    def sd15(cls) -> Self:
        """Stable Diffusion 1.1 to 1.5."""
        return cls(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention=(True, True, True, False),
            num_heads=(8, 8, 8, 8),
            cross_attention_dim=768,
        )

    @classmethod
    def sd21(cls) -> Self:
        """Stable Diffusion 2.0 and 2.1 at 512²."""
        return dataclasses.replace(
            cls.sd15(),
            num_heads=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )

    @classmethod
    def tiny(cls) -> Self:
        """Every part of SD 1.5, its 32 attention layers too, at a size for tests."""
        return cls(
            block_out_channels=(32, 64, 64, 64),
            cross_attention=(True, True, True, False),
            num_heads=(2, 4, 4, 4),
            cross_attention_dim=32,
            norm_num_groups=16,
            sample_size=16,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From diffusers' `config.json`.

        Raises:
          UserError: fields that are missing or ask for arithmetic this net does not have, all of them named.
        """
        mirrored = [
            {v: k for k, v in _DOWN.items()}.get(kind)
            for kind in config.get("down_block_types", ())
        ]
        shared = cls.shared_fields(
            "U-Net",
            config,
            own=("out_channels", "sample_size"),
            up_block_types=[_UP[attends] for attends in reversed(mirrored) if attends is not None],
            center_input_sample=False,
            only_cross_attention=False,
            dropout=0.0,
            resnet_out_scale_factor=1.0,
            time_embedding_type="positional",
            conv_in_kernel=3,
            conv_out_kernel=3,
            attention_type="default",
        )
        return cls(out_channels=config["out_channels"], sample_size=config["sample_size"], **shared)

    def to_config(self) -> dict[str, Any]:
        """diffusers' `config.json` of this net."""
        return {
            "_class_name": "UNet2DConditionModel",
            **super().to_config(),
            "up_block_types": [_UP[attends] for attends in reversed(self.cross_attention)],
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
        }

    def attention_layers(self) -> tuple[AttentionLayer, ...]:
        """Every attention layer in the order by which adapters count them: down, up, middle; self before cross."""
        levels = list(enumerate(self.cross_attention))
        depth = self.layers_per_block
        places = [
            (f"down_blocks.{n}.attentions.{i}", n) for n, on in levels for i in range(depth * on)
        ]
        places += [
            (f"up_blocks.{step}.attentions.{i}", n)
            for step, (n, on) in enumerate(reversed(levels))
            for i in range((depth + 1) * on)
        ]
        places.append(("mid_block.attentions.0", -1))
        return tuple(
            AttentionLayer(
                f"{place}.transformer_blocks.0.{name}", self.block_out_channels[level], context
            )
            for place, level in places
            for name, context in (("attn1", None), ("attn2", self.cross_attention_dim))
        )


def _resnet(config: EncoderConfig, channels: int, out_channels: int, **options: Unpack[Options]):
    return ResnetBlock(
        channels,
        out_channels,
        time_channels=4 * config.block_out_channels[0],
        groups=config.norm_num_groups,
        epsilon=config.norm_eps,
        **options,
    )


def _transformer(
    config: EncoderConfig, level: int, numbers: Iterator[int], **options: Unpack[Options]
):
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
    """A level on the way down. Every residual block leaves a skip connection, and the downsampler one more."""

    def __init__(
        self, config: EncoderConfig, level: int, numbers: Iterator[int], **options: Unpack[Options]
    ):
        channels = config.block_out_channels
        widths = [channels[max(level - 1, 0)]] + [channels[level]] * config.layers_per_block
        self.resnets = nnx.List(
            [_resnet(config, a, b, **options) for a, b in itertools.pairwise(widths)]
        )
        self.attentions = nnx.List(
            [_transformer(config, level, numbers, **options) for _ in self.resnets]
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
            x = resnet(x, time)
            if transformer is not None:
                x, found = transformer(x, given)
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
        self.resnets = nnx.List([_resnet(config, channels, channels, **options) for _ in range(2)])
        self.attentions = nnx.List([_transformer(config, -1, numbers, **options)])

    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b e"], given: Given
    ) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        x, maps = self.attentions[0](self.resnets[0](x, time), given)
        return self.resnets[1](x, time), maps


class UpBlock(nnx.Module):
    """A level on the way up. Every residual block takes a skip connection, the last one that was left first."""

    def __init__(
        self, config: EncoderConfig, level: int, numbers: Iterator[int], **options: Unpack[Options]
    ):
        channels = config.block_out_channels
        own, deeper, outer = (
            channels[level],
            channels[min(level + 1, len(channels) - 1)],
            channels[max(level - 1, 0)],
        )
        entering = [deeper] + [own] * config.layers_per_block
        skips = [own] * config.layers_per_block + [outer]
        self.resnets = nnx.List(
            [_resnet(config, a + b, own, **options) for a, b in zip(entering, skips, strict=True)]
        )
        self.attentions = nnx.List(
            [_transformer(config, level, numbers, **options) for _ in self.resnets]
            if config.cross_attention[level]
            else []
        )
        self.upsamplers = nnx.List([Upsample(own, **options)] if level else [])

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: Sequence[Array],
        size: tuple[int, int],
        time: Float[Array, "b e"],
        given: Given,
    ) -> tuple[Float[Array, "b h2 w2 d"], AttentionMaps]:
        """`skips`: in the order they are taken. `size`: of the level that follows, odd or even."""
        maps: AttentionMaps = {}
        for resnet, transformer, skip in itertools.zip_longest(
            self.resnets, self.attentions, skips
        ):
            x = resnet(jnp.concatenate([x, skip], axis=-1), time)
            if transformer is not None:
                x, found = transformer(x, given)
                maps = {**maps, **found}
        for upsample in self.upsamplers:
            x = upsample(x, size)
        return x, maps


class Encoder(nnx.Module):
    """What U-Net and control net have in common: the time embedding, the way down and the middle."""

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
        """From the first map to the innermost one, with every skip connection in the order they arise."""
        skips, maps = [x], {}
        for block in self.down_blocks:
            x, left, found = block(x, time, given)
            skips += left
            maps |= found
        return x, skips, maps


class UNet(Encoder):
    """The denoiser.

    Args:
      config: its shape.
      dtype: of its arithmetic; None: whatever input and weights promote to. Norm statistics, softmax and attention maps
        are float32 in any case.
      param_dtype: of its weights.
      attention: the kernel for long self-attention.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        attention: AttentionChoice = "auto",
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        # Made in the order by which adapters count attention layers: down, up, middle.
        numbers = itertools.count(step=2)
        super().__init__(config, numbers, **options)
        levels = range(len(config.block_out_channels))
        self.up_blocks = nnx.List(
            [UpBlock(config, n, numbers, **options) for n in reversed(levels)]
        )
        self.mid_block = MidBlock(config, numbers, **options)
        channels = config.block_out_channels[0]
        self.conv_norm_out = GroupNorm(
            config.norm_num_groups, channels, epsilon=config.norm_eps, **options
        )
        self.conv_out = nnx.Conv(channels, config.out_channels, (3, 3), padding=1, **options)
        self.config = config
        self.attention = attention

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        context: Float[Array, "b k d"],
        *,
        adapter: "IdAdapter | None" = None,
        id_tokens: Float[Array, "b n d"] | None = None,
        scale: float | Float[Array, ""] = 1.0,
        residuals: Residuals | None = None,
        attention_at: Sequence[int | tuple[int, int]] = (),
    ) -> UNetOutput:
        """One prediction.

        Args:
          latents: noisy, scaled as the scheduler asks.
          timesteps: in [0, 1000), whole or not.
          context: the text encoder's hidden states.
          adapter: what the identity channel learnt. None is the base model, exactly.
          id_tokens: of the identity, from `adapter.image_proj`. None leaves the adapter its LoRA alone.
          scale: of the attention to id_tokens. It does not touch the LoRA.
          residuals: what a ShadingNet adds.
          attention_at: grids, (rows, columns) or the side of a square one, whose text cross-attention is returned.
        Returns:
          the prediction (b, h, w, c), and {number of the layer: probabilities (b, heads, rows·columns, k), float32}.
        Raises:
          ValueError: id_tokens without an adapter, or residuals of another number.
        """
        if id_tokens is not None and adapter is None:
            raise ValueError("id_tokens need the adapter that made them: give adapter too")
        grids = tuple((g, g) if isinstance(g, int) else (g[0], g[1]) for g in attention_at)
        given = Given(context, adapter, id_tokens, scale, grids, self.attention)
        x = self.conv_in(latents)
        time = self.time_embedding(timesteps, x.dtype)
        x, skips, maps = self.descend(x, time, given)
        x, found = self.mid_block(x, time, given)
        maps |= found
        if residuals is not None:
            x = x + residuals.mid.astype(x.dtype)
            skips = [a + b.astype(a.dtype) for a, b in zip(skips, residuals.down, strict=True)]
        for block in self.up_blocks:
            taken = [skips.pop() for _ in block.resnets]
            size = skips[-1].shape[1:3] if skips else x.shape[1:3]
            x, found = block(x, taken, size, time, given)
            maps |= found
        x = self.conv_out(nnx.silu(self.conv_norm_out(x)))
        return UNetOutput(x, maps)
