"""Everything the identity channel learns, as a module of its own beside the frozen U-Net.

Papers: Face-MakeUpV2 (arXiv 2510.21775); Ye et al. 2023 (IP-Adapter). The files are those of
IP-Adapter-FaceID-PlusV2: the projector equals diffusers 0.42's
`IPAdapterFaceIDPlusImageProjection`, and what the layers hold is applied by
`fmv2.models.transformer.Attention`.
"""

import dataclasses
from typing import Any, Self, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fmv2.models.attention import attention
from fmv2.models.layers import Lora, Options, Start, gelu
from fmv2.models.unet import AttentionLayer, UNet, UNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdAdapterConfig:
    """The shape of an adapter, fitted to one U-Net."""

    layers: tuple[AttentionLayer, ...]
    """The U-Net's attention layers, in their order."""
    token_dim: int
    """Width of the ID tokens: the U-Net's `cross_attention_dim`."""
    id_dim: int = 512
    face_dim: int = 1280
    """Width of the face features: 1280 for ViT-H/14."""
    num_tokens: int = 4
    resampler_depth: int = 4
    resampler_heads: int = 12
    """Of 64 channels each."""
    rank: int = 128
    alpha: float | None = None
    """The LoRA's scale is alpha / rank; None is a scale of 1."""

    @classmethod
    def for_unet(cls, unet: UNetConfig, **fields) -> Self:
        """The published adapter for this U-Net; `fields` replaces defaults."""
        return cls(
            layers=unet.attention_layers(),
            token_dim=unet.cross_attention_dim,
            **{"resampler_heads": max(unet.cross_attention_dim // 64, 1), **fields},
        )


class PerceiverAttention(nnx.Module):
    """Queries from the latents, keys and values from features and latents; heads of 64 channels."""

    def __init__(self, dim: int, heads: int, **options: Unpack[Options]):
        self.heads = heads
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-5, **options)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-5, **options)
        self.to_q = nnx.Linear(dim, 64 * heads, use_bias=False, **options)
        self.to_kv = nnx.Linear(dim, 128 * heads, use_bias=False, **options)
        self.to_out = nnx.Linear(64 * heads, dim, use_bias=False, **options)

    def __call__(
        self, features: Float[Array, "b k d"], latents: Float[Array, "b n d"]
    ) -> Float[Array, "b n d"]:
        features, latents = self.norm1(features), self.norm2(latents)
        query = self.to_q(latents)
        key, value = jnp.split(self.to_kv(jnp.concatenate([features, latents], axis=1)), 2, axis=-1)
        heads = [x.reshape(*x.shape[:2], self.heads, 64) for x in (query, key, value)]
        return self.to_out(attention(*heads).reshape(query.shape))


class FeedForward(nnx.Module):
    """Norm and a hidden layer four times as wide, without biases."""

    def __init__(self, dim: int, **options: Unpack[Options]):
        self.norm = nnx.LayerNorm(dim, epsilon=1e-5, **options)
        self.proj_in = nnx.Linear(dim, 4 * dim, use_bias=False, **options)
        self.proj_out = nnx.Linear(4 * dim, dim, use_bias=False, **options)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.proj_out(gelu(self.proj_in(self.norm(x))))


class ResamplerLayer(nnx.Module):
    """Attention and feed-forward, each added to the latents."""

    def __init__(self, dim: int, heads: int, **options: Unpack[Options]):
        self.attention = PerceiverAttention(dim, heads, **options)
        self.feed_forward = FeedForward(dim, **options)

    def __call__(
        self, features: Float[Array, "b k d"], latents: Float[Array, "b n d"]
    ) -> Float[Array, "b n d"]:
        latents = latents + self.attention(features, latents)
        return latents + self.feed_forward(latents)


class Resampler(nnx.Module):
    """Refines a few latents by what they find in the face features."""

    def __init__(self, config: IdAdapterConfig, **options: Unpack[Options]):
        dim = config.token_dim
        self.proj_in = nnx.Linear(config.face_dim, dim, **options)
        self.layers = nnx.List(
            [
                ResamplerLayer(dim, config.resampler_heads, **options)
                for _ in range(config.resampler_depth)
            ]
        )
        self.proj_out = nnx.Linear(dim, dim, **options)
        self.norm_out = nnx.LayerNorm(dim, epsilon=1e-5, **options)

    def __call__(
        self, latents: Float[Array, "b n d"], face_features: Float[Array, "b k f"]
    ) -> Float[Array, "b n d"]:
        features = self.proj_in(face_features)
        for layer in self.layers:
            latents = layer(features, latents)
        return self.norm_out(self.proj_out(latents))


class Projector(nnx.Module):
    """Identity embedding and face features → ID tokens."""

    def __init__(self, config: IdAdapterConfig, **options: Unpack[Options]):
        self.shape = (config.num_tokens, config.token_dim)
        self.proj_in = nnx.Linear(config.id_dim, 2 * config.id_dim, **options)
        self.proj_out = nnx.Linear(
            2 * config.id_dim, config.num_tokens * config.token_dim, **options
        )
        self.norm = nnx.LayerNorm(config.token_dim, epsilon=1e-5, **options)
        self.perceiver_resampler = Resampler(config, **options)

    def __call__(
        self,
        id_embeddings: Float[Array, "b e"],
        face_features: Float[Array, "b k f"],
        s_scale: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b n d"]:
        """tokens = x + s_scale · resampler(x, face_features), x the projected embedding.

        Args:
          id_embeddings: ArcFace's, of unit length; zeros are "no identity".
          face_features: CLIP ViT-H/14's hidden state −2 of the aligned face, (b, 257, 1280).
          s_scale: how much of the face's structure enters beside its identity.
        """
        hidden = gelu(self.proj_in(id_embeddings))
        x = self.norm(self.proj_out(hidden).reshape(-1, *self.shape))
        return x + jnp.asarray(s_scale, x.dtype) * self.perceiver_resampler(x, face_features)


class AdapterLayer(nnx.Module):
    """What one attention layer of the U-Net learns.

    Keys and values of the ID tokens only where the layer attends to text.
    """

    def __init__(
        self, layer: AttentionLayer, *, rank: int, alpha: float | None, **options: Unpack[Options]
    ):
        context_dim = layer.context_dim or layer.dim
        self.to_q_lora = Lora(layer.dim, layer.dim, rank=rank, alpha=alpha, **options)
        self.to_k_lora = Lora(context_dim, layer.dim, rank=rank, alpha=alpha, **options)
        self.to_v_lora = Lora(context_dim, layer.dim, rank=rank, alpha=alpha, **options)
        self.to_out_lora = Lora(layer.dim, layer.dim, rank=rank, alpha=alpha, **options)
        if layer.context_dim is not None:
            self.to_k_ip = nnx.Linear(layer.context_dim, layer.dim, use_bias=False, **options)
            self.to_v_ip = nnx.Linear(layer.context_dim, layer.dim, use_bias=False, **options)


class IdAdapter(nnx.Module):
    """The projector, and one `AdapterLayer` for each attention layer of the U-Net."""

    def __init__(
        self,
        config: IdAdapterConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.image_proj = Projector(config, **options)
        self.layers = nnx.List(
            [
                AdapterLayer(layer, rank=config.rank, alpha=config.alpha, **options)
                for layer in config.layers
            ]
        )
        self.config = config

    @classmethod
    def from_unet(
        cls,
        unet: UNet,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        start: Start = "published",
        **fields,
    ) -> Self:
        """A fresh adapter: a LoRA that adds nothing, and the text's keys.

        Args:
          start: as published it has the text's values too, to be quick none.
          fields: in place of defaults of `IdAdapterConfig`.
        """
        config = IdAdapterConfig.for_unet(unet.config, **fields)
        adapter = cls(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        for place, layer in zip(config.layers, adapter.layers, strict=True):
            if place.context_dim is not None:
                source = _submodule(unet, place.path)
                layer.to_k_ip.kernel[...] = source.to_k.kernel[...].astype(param_dtype)
                first = source.to_v.kernel[...].astype(param_dtype)
                layer.to_v_ip.kernel[...] = first if start == "published" else jnp.zeros_like(first)
        return adapter


def mix_identities(
    id_embeddings: Float[Array, "people b e"],
    face_features: Float[Array, "people b k f"],
    weights: Float[Array, " people"],
) -> tuple[Float[Array, "b e"], Float[Array, "b k f"]]:
    """One identity out of several: the weighted means of both, the embedding at unit length.

    Args:
      id_embeddings: of unit length.
      face_features: of the same faces.
      weights: of any positive sum; only their ratio counts.
    Raises:
      ValueError: the numbers of people differ.
    """
    if not len(id_embeddings) == len(face_features) == len(weights):
        raise ValueError(
            "each person needs an embedding, face features and a weight, got "
            f"{len(id_embeddings)}, {len(face_features)} and {len(weights)}"
        )
    weights = weights / weights.sum()
    embedding = jnp.einsum("p,pbe->be", weights, id_embeddings)
    embedding = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
    return embedding, jnp.einsum("p,pbkf->bkf", weights, face_features)


def _submodule(net: Any, path: str) -> Any:
    for part in path.split("."):
        net = net[int(part)] if part.isdigit() else getattr(net, part)
    return net
