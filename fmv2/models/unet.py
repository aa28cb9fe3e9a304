"""The U-Net of Stable Diffusion 1.x and 2.x, with the identity adapter as an argument.

Paper: Rombach et al. 2022 (latent diffusion). Equals diffusers 0.42's `UNet2DConditionModel`; with
an adapter it equals that class under IP-Adapter-FaceID's attention processors. Layout NHWC. Whether
the net predicts ε, v or x₀ is a matter of its training and of the noise schedule, not of the net.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from fmv2.models.attention import AttentionChoice
from fmv2.models.encoder import (
    DOWN_BLOCK_TYPES,
    Encoder,
    EncoderConfig,
    MidBlock,
    resnet_block,
    spatial_transformer,
)
from fmv2.models.layers import GroupNorm, Options, Upsample, normed_silu
from fmv2.models.transformer import AttentionMaps, Given

if TYPE_CHECKING:
    from fmv2.models.id_adapter import IdAdapter


class UNetOutput(NamedTuple):
    """The prediction, and the attention maps that were asked for."""

    noise: Float[Array, "b h w c"]
    attention: AttentionMaps


class Residuals(NamedTuple):
    """What a control net adds: to every skip connection, in the order they arise, and to the
    middle.
    """

    down: tuple[Float[Array, "b h w c"], ...]
    mid: Float[Array, "b h w c"]


_UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}


class AttentionLayer(NamedTuple):
    """One attention layer: its torch name and its widths (`context_dim` is None for self-
    attention).
    """

    path: str
    dim: int
    context_dim: int | None


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
    def embedded(cls) -> Self:
        """The embedded default's, for pictures of 128²: 7,028,368 parameters.

        One residual block a level in place of two, and no level without attention: what is dear on
        a few cores is the outermost level.
        """
        return cls(
            block_out_channels=(64, 128, 128),
            cross_attention=(True, True, True),
            num_heads=(4, 8, 8),
            cross_attention_dim=128,
            layers_per_block=1,
            in_channels=16,
            out_channels=16,
            norm_num_groups=8,
            sample_size=16,
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
          UserError: fields that are missing or ask for arithmetic this net does not have, all of
            them named.
        """
        mirrored = [
            {v: k for k, v in DOWN_BLOCK_TYPES.items()}.get(kind)
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
        """Every attention layer in the order by which adapters count them: down, up, middle;
        self before cross.
        """
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


class UpBlock(nnx.Module):
    """A level on the way up. Every residual block takes a skip connection, the last one that was
    left first.
    """

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
            [
                resnet_block(config, a + b, own, **options)
                for a, b in zip(entering, skips, strict=True)
            ]
        )
        self.attentions = nnx.List(
            [spatial_transformer(config, level, numbers, **options) for _ in self.resnets]
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
            x = given.kept(resnet)(jnp.concatenate([x, skip], axis=-1), time)
            if transformer is not None:
                x, found = given.kept(partial(transformer, given=given))(x)
                maps = {**maps, **found}
        for upsample in self.upsamplers:
            x = upsample(x, size)
        return x, maps


class UNet(Encoder):
    """The denoiser.

    Args:
      config: its shape.
      dtype: of its arithmetic; None: whatever input and weights promote to. Norm statistics,
        softmax and attention maps are float32 in any case.
      param_dtype: of its weights.
      attention: the kernel for long self-attention.
      remat: whether gradients compute each block's inside again instead of keeping it.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        attention: AttentionChoice = "auto",
        remat: bool = False,
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
        self.attention: AttentionChoice = attention
        self.remat = remat

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
          id_tokens: of the identity, from `adapter.image_proj`. None leaves the adapter its LoRA
            alone.
          scale: of the attention to id_tokens. It does not touch the LoRA.
          residuals: what a ShadingNet adds.
          attention_at: grids, (rows, columns) or the side of a square one, whose text
            cross-attention is returned.
        Returns:
          the prediction (b, h, w, c), and {number of the layer: probabilities (b, heads,
          rows·columns, k), float32}.
        Raises:
          ValueError: id_tokens without an adapter, or residuals of another number.
        """
        if id_tokens is not None and adapter is None:
            raise ValueError("id_tokens need the adapter that made them: give adapter too")
        grids = tuple((g, g) if isinstance(g, int) else (g[0], g[1]) for g in attention_at)
        given = Given(context, adapter, id_tokens, scale, grids, self.attention, self.remat)
        x = self.conv_in(latents)
        time = self.time_embedding(timesteps, x.dtype)
        x, skips, maps = self.descend(x, time, given)
        x, found = self.mid_block(x, time, given)
        maps = {**maps, **found}
        if residuals is not None:
            if len(residuals.down) != len(skips):
                raise ValueError(
                    f"residuals.down must hold {len(skips)} maps, got {len(residuals.down)}: "
                    "make the ShadingNet with ShadingNetConfig.for_unet"
                )
            x = x + residuals.mid.astype(x.dtype)
            skips = [a + b.astype(a.dtype) for a, b in zip(skips, residuals.down, strict=True)]
        for block in self.up_blocks:
            taken = [skips.pop() for _ in block.resnets]
            size = skips[-1].shape[1:3] if skips else x.shape[1:3]
            x, found = block(x, taken, size, time, given)
            maps = {**maps, **found}
        x = self.conv_out(normed_silu(self.conv_norm_out, x))
        return UNetOutput(x, maps)
