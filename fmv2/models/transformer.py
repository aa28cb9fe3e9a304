"""The transformer blocks of the U-Net: self-attention, cross-attention to text and identity, and a
gated feed-forward.

Equal to diffusers 0.42's `Attention`, `BasicTransformerBlock` and `Transformer2DModel`, with the
adapter as an argument where diffusers replaces the attention processors.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmv2.models.attention import AttentionChoice, attention, attention_probabilities
from fmv2.models.layers import ATTENDED, STATISTICS, GroupNorm, Options, gelu, lora_linear

if TYPE_CHECKING:
    from fmv2.models.id_adapter import IdAdapter

AttentionMaps = dict[int, Float[Array, "b heads q k"]]
"""Text cross-attention probabilities, float32, by the layer's number in the attention order."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What one call of the U-Net gives to every attention layer."""

    context: Float[Array, "b k d"]
    adapter: "IdAdapter | None" = None
    id_tokens: Float[Array, "b n d"] | None = None
    scale: float | Float[Array, ""] = 1.0
    attention_at: tuple[tuple[int, int], ...] = ()
    implementation: AttentionChoice = "auto"
    remat: bool = False

    def kept(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A block's call as it is; with `remat`, its inside is computed again on the way back, all
        but what is little to keep and long to compute: a flash kernel's output, and the group
        norms' statistics."""
        policy = jax.checkpoint_policies.save_only_these_names(ATTENDED, STATISTICS)
        return jax.checkpoint(call, policy=policy) if self.remat else call


class Attention(nnx.Module):
    """Multi-head attention, over the tokens themselves or (`context_dim` given) over the context.

    Source of the decoupled identity attention: Ye et al. 2023 (IP-Adapter), eq. 5.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int | None,
        heads: int,
        *,
        number: int,
        **options: Unpack[Options],
    ):
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} attention heads")
        self.heads = heads
        self.number = number
        self.crosses = context_dim is not None
        self.to_q = nnx.Linear(dim, dim, use_bias=False, **options)
        self.to_k = nnx.Linear(context_dim or dim, dim, use_bias=False, **options)
        self.to_v = nnx.Linear(context_dim or dim, dim, use_bias=False, **options)
        self.to_out = nnx.Linear(dim, dim, **options)

    def __call__(
        self, x: Float[Array, "b t d"], grid: tuple[int, int], given: Given
    ) -> tuple[Float[Array, "b t d"], AttentionMaps]:
        layer = None if given.adapter is None else given.adapter.layers[self.number]
        context = given.context if self.crosses else x
        query = self._split(lora_linear(self.to_q, layer and layer.to_q_lora, x))
        key = self._split(lora_linear(self.to_k, layer and layer.to_k_lora, context))
        value = self._split(lora_linear(self.to_v, layer and layer.to_v_lora, context))

        maps: AttentionMaps = {}
        if self.crosses and grid in given.attention_at:
            probabilities = attention_probabilities(query, key)
            maps = {self.number: probabilities}
            y = jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(value.dtype), value)
        else:
            y = attention(query, key, value, implementation=given.implementation)

        if self.crosses and layer is not None and given.id_tokens is not None:
            key = self._split(layer.to_k_ip(given.id_tokens))
            value = self._split(layer.to_v_ip(given.id_tokens))
            of_identity = attention(query, key, value, implementation=given.implementation)
            y = y + jnp.asarray(given.scale, y.dtype) * of_identity
        y = y.reshape(x.shape)
        return lora_linear(self.to_out, layer and layer.to_out_lora, y), maps

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)


class FeedForward(nnx.Module):
    """x ↦ proj_out(value · gelu(gate)), value and gate halves of one projection (GEGLU)."""

    def __init__(self, dim: int, **options: Unpack[Options]):
        self.proj_in = nnx.Linear(dim, 8 * dim, **options)
        self.proj_out = nnx.Linear(4 * dim, dim, **options)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        # The weight is split and not what it makes: a TPU's compiler then need not write and read
        # both halves, the widest maps of the net.
        assert self.proj_in.bias is not None
        dtype = self.proj_in.dtype or jnp.result_type(x, self.proj_in.kernel)
        kernels = jnp.split(self.proj_in.kernel[...].astype(dtype), 2, axis=1)
        biases = jnp.split(self.proj_in.bias[...].astype(dtype), 2)
        value, gate = (
            x.astype(dtype) @ kernel + bias.reshape(1, 1, -1)
            for kernel, bias in zip(kernels, biases, strict=True)
        )
        return self.proj_out(value * gelu(gate))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each normed before and added after."""

    def __init__(
        self, dim: int, context_dim: int, heads: int, *, number: int, **options: Unpack[Options]
    ):
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-5, **options)
        self.attn1 = Attention(dim, None, heads, number=number, **options)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-5, **options)
        self.attn2 = Attention(dim, context_dim, heads, number=number + 1, **options)
        self.norm3 = nnx.LayerNorm(dim, epsilon=1e-5, **options)
        self.ff = FeedForward(dim, **options)

    def __call__(
        self, x: Float[Array, "b t d"], grid: tuple[int, int], given: Given
    ) -> tuple[Float[Array, "b t d"], AttentionMaps]:
        x = x + self.attn1(self.norm1(x), grid, given)[0]
        y, maps = self.attn2(self.norm2(x), grid, given)
        x = x + y
        return x + self.ff(self.norm3(x)), maps


class SpatialTransformer(nnx.Module):
    """A transformer block over the pixels of a map. Its projections are linear: a 1×1
    convolution is one too.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        heads: int,
        *,
        groups: int,
        number: int,
        **options: Unpack[Options],
    ):
        self.norm = GroupNorm(groups, channels, epsilon=1e-6, **options)
        self.proj_in = nnx.Linear(channels, channels, **options)
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, context_dim, heads, number=number, **options)]
        )
        self.proj_out = nnx.Linear(channels, channels, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], given: Given
    ) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        batch, height, width, channels = x.shape
        tokens = self.proj_in(self.norm(x)).reshape(batch, height * width, channels)
        tokens, maps = self.transformer_blocks[0](tokens, (height, width), given)
        return x + self.proj_out(tokens).reshape(x.shape), maps
