"""CLIP's image tower: the image encoder behind the identity, ViT-H/14 or another.

Equal to transformers 5.23's `CLIPVisionModelWithProjection`. Images are NHWC, normalised by CLIP's
own mean and deviation.
"""

import dataclasses
from typing import NamedTuple, Self, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fmv2.models.clip import Encoder, TowerConfig, embedding, layer_norm, projection
from fmv2.models.layers import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TowerConfig):
    """The shape of a vision tower."""

    tower = "vision"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    """Side of the image in pixels; no other size is taken."""
    patch_size: int = 32

    @classmethod
    def vit_b32(cls) -> Self:
        """OpenAI's ViT-B/32: 87,849,216 parameters."""
        return cls()

    @classmethod
    def vit_l14(cls) -> Self:
        """OpenAI's ViT-L/14: 303,966,208 parameters."""
        return cls(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            projection_dim=768,
            patch_size=14,
        )

    @classmethod
    def vit_h14(cls) -> Self:
        """OpenCLIP's ViT-H/14, the one of IP-Adapter: 632,076,800 parameters."""
        return cls(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            projection_dim=1024,
            hidden_act="gelu",
            patch_size=14,
        )

    @classmethod
    def embedded(cls) -> Self:
        """The embedded default's: 644,736 parameters."""
        return cls(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=128,
            image_size=64,
            patch_size=8,
        )

    @classmethod
    def tiny(cls) -> Self:
        """Every part at a size for tests."""
        return cls(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=24,
            image_size=32,
            patch_size=8,
        )

    @property
    def tokens(self) -> int:
        """Patches of an image, and one for the class."""
        return (self.image_size // self.patch_size) ** 2 + 1


class VisionEmbeddings(nnx.Module):
    """A class token and the image's patches, with their positions."""

    def __init__(self, config: CLIPVisionConfig, **options: Unpack[Options]):
        size, dim = config.patch_size, config.hidden_size
        self.class_embedding = nnx.Param(
            dim**-0.5 * jax.random.normal(options["rngs"].params(), (dim,), options["param_dtype"])
        )
        self.patch_embedding = nnx.Conv(
            config.num_channels,
            dim,
            (size, size),
            strides=size,
            padding="VALID",
            use_bias=False,
            **options,
        )
        self.position_embedding = embedding(config.tokens, config, options)

    def __call__(self, pixel_values: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        patches = self.patch_embedding(pixel_values)
        batch, dim = patches.shape[0], patches.shape[-1]
        start = jnp.broadcast_to(self.class_embedding[...], (batch, 1, dim)).astype(patches.dtype)
        tokens = jnp.concatenate([start, patches.reshape(batch, -1, dim)], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))[None]


class CLIPVisionModel(nnx.Module):
    """The vision tower up to, and with, its last norm."""

    def __init__(self, config: CLIPVisionConfig, **options: Unpack[Options]):
        self.config = config
        self.embeddings = VisionEmbeddings(config, **options)
        # The misspelling is that of every file.
        self.pre_layrnorm = layer_norm(config, options)
        self.encoder = Encoder(config, causal=False, **options)
        self.post_layernorm = layer_norm(config, options)

    def hidden_state(
        self, pixel_values: Float[Array, "b h w c"], depth: int
    ) -> Float[Array, "b t d"]:
        """The state after `depth` layers; 0 is their input."""
        size, channels = self.config.image_size, self.config.num_channels
        if pixel_values.shape[1:] != (size, size, channels):
            raise ValueError(
                f"images must be (b, {size}, {size}, {channels}), got {pixel_values.shape}: "
                "resize and crop them"
            )
        return self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)), depth)


class CLIPVisionOutput(NamedTuple):
    """An image as one vector."""

    image_embeds: Float[Array, "b p"]
    """Projected into the space that texts and images share; not normalised."""
    pooled: Float[Array, "b d"]
    """The class token after the last norm, before the projection."""


class CLIPVisionModelWithProjection(nnx.Module):
    """The vision tower, projected into the space that texts and images share.

    Args:
      config: the shape.
      dtype: of the arithmetic; None is what images and weights promote to. Norm statistics are
        float32.
      param_dtype: of the weights.
      rngs: of the initialisation.
    """

    def __init__(
        self,
        config: CLIPVisionConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config = config
        self.vision_model = CLIPVisionModel(config, **options)
        self.visual_projection = projection(config, options)

    def __call__(self, pixel_values: Float[Array, "b h w c"]) -> CLIPVisionOutput:
        """The vectors of images, which CLIP's processor has cropped and normalised.

        Raises:
          ValueError: images of another size than the configuration's.
        """
        last = self.hidden_state(pixel_values, -1)
        pooled = self.vision_model.post_layernorm(last[:, 0])
        return CLIPVisionOutput(self.visual_projection(pooled), pooled)

    def hidden_state(
        self, pixel_values: Float[Array, "b h w c"], index: int
    ) -> Float[Array, "b t d"]:
        """One entry of transformers' `hidden_states`; the layers behind it are not computed.

        Args:
          pixel_values: as in a call.
          index: 0 is the input of the first layer, n the output of the n-th; from the end if
            negative. Face-MakeUpV2 and IP-Adapter Plus take -2.
        Raises:
          ValueError: images of another size; an index out of range.
        """
        layers = self.config.num_hidden_layers
        if not -layers - 1 <= index <= layers:
            raise ValueError(f"index must be in [{-layers - 1}, {layers}], got {index}")
        return self.vision_model.hidden_state(pixel_values, index % (layers + 1))
