"""ShadingNet: a ControlNet over the physical shading map, its context the ID tokens.

Papers: Face-MakeUpV2 (arXiv 2510.21775); Zhang et al. 2023 (ControlNet). Equals diffusers 0.42's
`ControlNetModel`. Layout NHWC.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, Self, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from fmv2.models.attention import AttentionChoice, for_tpu
from fmv2.models.encoder import Encoder, EncoderConfig, MidBlock
from fmv2.models.layers import Options, Start
from fmv2.models.packing import pack, packed_conv
from fmv2.models.transformer import Given
from fmv2.models.unet import Residuals, UNet, UNetConfig

_SD_EMBEDDING, _SD_WIDTH = (16, 32, 96, 256), 320
"""Widths of ControlNet's embedding, beside a U-Net that begins with so many channels."""
_PACKED = 4
"""Side of the squares of pixels that the embedding packs: 16 channels become 256."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShadingNetConfig(EncoderConfig):
    """The shape of a ShadingNet: of the U-Net's way down, and of the shading map's embedding."""

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = _SD_EMBEDDING
    """Widths of the embedding; it halves the map between them, down to the size of the latents."""

    @classmethod
    def for_unet(cls, unet: UNetConfig, **fields) -> Self:
        """The ShadingNet for this U-Net; `fields` replaces defaults.

        Its embedding of the shading map is as much narrower than Stable Diffusion's as the U-Net
        is, in steps of 8.
        """
        shared = {f.name: getattr(unet, f.name) for f in dataclasses.fields(EncoderConfig)}
        part = 8 * _SD_WIDTH
        widths = (8 * -(-w * unet.block_out_channels[0] // part) for w in _SD_EMBEDDING)
        return cls(**{"conditioning_embedding_out_channels": tuple(widths), **shared, **fields})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From diffusers' `config.json`.

        Raises:
          UserError: fields that are missing or ask for arithmetic this net does not have, all of
            them named.
        """
        own = ("conditioning_channels", "conditioning_embedding_out_channels")
        shared = cls.shared_fields(
            "ShadingNet",
            config,
            own=own,
            only_cross_attention=False,
            controlnet_conditioning_channel_order="rgb",
            global_pool_conditions=False,
        )
        widths = tuple(config["conditioning_embedding_out_channels"])
        return cls(
            conditioning_channels=config["conditioning_channels"],
            conditioning_embedding_out_channels=widths,
            **shared,
        )

    def to_config(self) -> dict[str, Any]:
        """diffusers' `config.json` of this net."""
        return {
            "_class_name": "ControlNetModel",
            **super().to_config(),
            "conditioning_channels": self.conditioning_channels,
            "conditioning_embedding_out_channels": list(self.conditioning_embedding_out_channels),
        }


class ShadingEmbedding(nnx.Module):
    """The shading map at size and width of the first map; its last convolution begins at zero."""

    def __init__(self, config: ShadingNetConfig, **options: Unpack[Options]):
        widths = config.conditioning_embedding_out_channels
        self.conv_in = nnx.Conv(
            config.conditioning_channels, widths[0], (3, 3), padding=1, **options
        )
        self.blocks = nnx.List()
        for a, b in itertools.pairwise(widths):
            self.blocks.append(nnx.Conv(a, a, (3, 3), padding=1, **options))
            self.blocks.append(nnx.Conv(a, b, (3, 3), strides=2, padding=1, **options))
        zeros = nnx.initializers.zeros
        out = config.block_out_channels[0]
        self.conv_out = nnx.Conv(widths[-1], out, (3, 3), padding=1, kernel_init=zeros, **options)

    def __call__(
        self, shading: Float[Array, "b H W 3"], packed: bool = False
    ) -> Float[Array, "b h w c"]:
        """The embedding.

        Args:
          shading: the map.
          packed: compute what lies between it and a quarter of its size as `fmv2.models.packing`
            says.
        """
        divides = not any(side % _PACKED for side in shading.shape[1:3])
        block = _PACKED if packed and divides and len(self.blocks) >= 4 else 1
        x = pack(shading, block)
        for conv in (self.conv_in, *self.blocks):
            x, block = packed_conv(conv, x, block) if block > 1 else (conv(x), 1)
            x = nnx.silu(x)
        return self.conv_out(x)


class ShadingNet(Encoder):
    """The control net. Arguments as of `UNet`."""

    def __init__(
        self,
        config: ShadingNetConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        attention: AttentionChoice = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        numbers = itertools.count(step=2)
        super().__init__(config, numbers, **options)
        self.mid_block = MidBlock(config, numbers, **options)
        self.controlnet_cond_embedding = ShadingEmbedding(config, **options)
        zeros = nnx.initializers.zeros
        channels = config.block_out_channels
        # One for the first map, one for each residual block and downsampler.
        widths = [channels[0], *(c for c in channels for _ in range(config.layers_per_block + 1))][
            :-1
        ]
        self.controlnet_down_blocks = nnx.List(
            [nnx.Linear(width, width, kernel_init=zeros, **options) for width in widths]
        )
        self.controlnet_mid_block = nnx.Linear(
            channels[-1], channels[-1], kernel_init=zeros, **options
        )
        self.config = config
        self.attention: AttentionChoice = attention
        self.remat = remat

    @classmethod
    def from_unet(
        cls,
        unet: UNet,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        attention: AttentionChoice = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
        start: Start = "published",
    ) -> Self:
        """A fresh ShadingNet: the U-Net's first half, behind convolutions of zeros.

        Args:
          start: as published the shading map's embedding ends in zeros too; to be quick, not.
        """
        config = ShadingNetConfig.for_unet(unet.config)
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        net = cls(config, attention=attention, remat=remat, **options)
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            weights = nnx.state(getattr(unet, name))
            nnx.update(getattr(net, name), jax.tree.map(lambda x: x.astype(param_dtype), weights))
        if start == "quick":
            last = net.controlnet_cond_embedding.conv_out.kernel
            last[...] = nnx.initializers.lecun_normal()(rngs.params(), last.shape, param_dtype)
        return net

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        id_tokens: Float[Array, "b n d"],
        shading: Float[Array, "b H W 3"],
        scale: float | Float[Array, ""] | Float[Array, "b 1 1 1"] = 1.0,
    ) -> Residuals:
        """What the shading map adds to the U-Net.

        Args:
          latents: as given to the U-Net.
          timesteps: as given to the U-Net.
          id_tokens: of the identity; they are this net's whole context.
          shading: in [0, 1], eight times the latents' size.
          scale: of everything it adds, or of what it adds to each; 0 adds nothing.
        Raises:
          ValueError: the embedded shading map is not of the latents' size.
        """
        given = Given(id_tokens, implementation=self.attention, remat=self.remat)
        x = self.conv_in(latents)
        embed = partial(self.controlnet_cond_embedding, packed=for_tpu(self.attention))
        embedded = given.kept(embed)(shading.astype(x.dtype))
        if embedded.shape != x.shape:
            factor = 2 ** (len(self.config.conditioning_embedding_out_channels) - 1)
            want = (factor * x.shape[1], factor * x.shape[2])
            raise ValueError(
                f"shading must be {want} pixels for latents of {x.shape[1:3]}, "
                f"got {shading.shape[1:3]}"
            )
        time = self.time_embedding(timesteps, x.dtype)
        x, skips, _ = self.descend(x + embedded, time, given)
        x, _ = self.mid_block(x, time, given)
        scale = jnp.asarray(scale, x.dtype)
        down = tuple(
            scale * zero(skip)
            for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        )
        return Residuals(down, scale * self.controlnet_mid_block(x))
